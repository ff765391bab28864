"""The Lua that runs inside Redis and Valkey. Each script is one atomic step.

A row's two offsets are compared as pairs of 32-bit halves: Lua's numbers are doubles, which hold
integers exactly only up to 2^53, and an offset is an int64.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

_REPLACES = """
local function compare(new_high, new_low, old_high, old_low)
  if new_high ~= old_high then return new_high > old_high and 1 or -1 end
  if new_low ~= old_low then return new_low > old_low and 1 or -1 end
  return 0
end

local function replaces(new, old)
  if not old or #old < 16 then return true end
  local nt_low, nt_high, nl_low, nl_high = struct.unpack('<I4i4I4i4', new)
  local ot_low, ot_high, ol_low, ol_high = struct.unpack('<I4i4I4i4', old)
  local transactions = compare(nt_high, nt_low, ot_high, ot_low)
  local labels = compare(nl_high, nl_low, ol_high, ol_low)
  -- Each is -1, 0 or 1: the sum is above 0 only if neither is lower and one is greater.
  return transactions + labels > 0
end
"""


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and the name under which the server caches it."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        # Redis names a script by SHA-1; nothing here depends on its strength.
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


WRITE_ROWS = Script(
    _REPLACES
    + """
local ttl_ms = ARGV[1]
local replaced = 0
for i = 1, #KEYS do
  local row = ARGV[i + 1]
  if replaces(row, redis.call('GETRANGE', KEYS[i], 0, 15)) then
    redis.call('SET', KEYS[i], row, 'PX', ttl_ms)
    replaced = replaced + 1
  end
end
return replaced
"""
)
"""KEYS: rows. ARGV: time to live in ms, then one row per key. Returns how many were replaced."""

PUBLISH_COPIES = Script(
    _REPLACES
    + """
local ttl_ms, partition = ARGV[1], ARGV[2]
for i = 1, #KEYS do
  local row = ARGV[i + 2]
  if replaces(row, redis.call('HGET', KEYS[i], partition)) then
    redis.call('HSET', KEYS[i], partition, row)
    redis.call('PEXPIRE', KEYS[i], ttl_ms)
  end
end
return #KEYS
"""
)
"""KEYS: hashes of copies. ARGV: time to live in ms, the partition, then one row per key."""

READ_COPIES = Script(
    """
local all = {}
for i = 1, #KEYS do
  all[i] = redis.call('HGETALL', KEYS[i])
end
return all
"""
)
"""KEYS: hashes of copies. Returns one flat list of field and value per key."""

WRITE_CHECKPOINT = Script(
    """
local found = redis.call('GET', KEYS[1]) or ''
if found == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) end
return found
"""
)
"""KEYS: a checkpoint. ARGV: the text expected there ('' for none), the text to write. Returns what it found."""

TEXT_BY_SHA = {script.sha: script.text for script in (WRITE_ROWS, PUBLISH_COPIES, READ_COPIES, WRITE_CHECKPOINT)}
