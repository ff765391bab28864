"""The Lua that runs inside Redis and Valkey. Each script is one atomic step.

A row's two offsets are compared as pairs of 32-bit halves: Lua's numbers are doubles, which hold
integers exactly only up to 2^53, and an offset is an int64.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from stream.state.store import FORMER_OWNERS

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


CLAIM = Script(
    f"""
local found = redis.call('GET', KEYS[1]) or ''
local epoch, checkpoint, owners = string.match(found, '^(%d+) (%S+) (.+)$')
if found ~= '' and not epoch then return found end
local claimed, names = tonumber(ARGV[1]), {{ARGV[2]}}
if epoch and tonumber(epoch) >= claimed then claimed = tonumber(epoch) + 1 end
for name in string.gmatch(owners or '', '%S+') do
  if name ~= ARGV[2] and #names < {FORMER_OWNERS} then names[#names + 1] = name end
end
local head = string.format('%.0f', claimed) .. ' ' .. (checkpoint or '-') .. ' ' .. table.concat(names, ' ')
redis.call('SET', KEYS[1], head)
return head
"""
)
"""KEYS: a head. ARGV: the time in ms, the owner. Returns the new head, or what it found there and cannot read."""

RAISE_EPOCH = Script(
    """
if tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0') < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
return 1
"""
)
"""KEYS: a hash of epochs. ARGV: the partition, its epoch."""

WRITE_ROWS = Script(
    _REPLACES
    + """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return -1 end
local ttl_ms = ARGV[2]
local replaced = 0
for i = 2, #KEYS do
  local row = ARGV[i + 1]
  if replaces(row, redis.call('GETRANGE', KEYS[i], 0, 15)) then
    redis.call('SET', KEYS[i], row, 'PX', ttl_ms)
    replaced = replaced + 1
  end
end
return replaced
"""
)
"""KEYS: the head, then rows. ARGV: the head known, time to live in ms, then one row per key.

Returns how many were replaced; REFUSED where the head is another.
"""

PUBLISH_COPIES = Script(
    _REPLACES
    + """
local ttl_ms, partition = ARGV[1], ARGV[2]
if redis.call('HGET', KEYS[1], partition) ~= ARGV[3] then return -1 end
for i = 2, #KEYS do
  local row = ARGV[i + 2]
  if replaces(row, redis.call('HGET', KEYS[i], partition)) then
    redis.call('HSET', KEYS[i], partition, row)
    redis.call('PEXPIRE', KEYS[i], ttl_ms)
  end
end
return #KEYS
"""
)
"""KEYS: the hash of epochs, then hashes of copies. ARGV: time to live in ms, the partition, its epoch, one row per key.

REFUSED where the epoch is another.
"""

DELETE_ROWS = Script(
    """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local gone = 0
for i = 2, #KEYS do gone = gone + redis.call('UNLINK', KEYS[i]) end
return gone
"""
)
"""KEYS: the head, then rows. ARGV: the head known. Returns how many went; REFUSED where the head is another."""

DELETE_COPIES = Script(
    """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return -1 end
for i = 2, #KEYS do redis.call('HDEL', KEYS[i], ARGV[1]) end
return #KEYS
"""
)
"""KEYS: the hash of epochs, then hashes of copies. ARGV: the partition, its epoch. REFUSED where that is another."""

READ_COPIES = Script(
    """
local all = {}
for i = 1, #KEYS do
  local found, others = redis.call('HGETALL', KEYS[i]), {}
  for at = 1, #found, 2 do
    if found[at] ~= ARGV[i] then
      others[#others + 1] = found[at]
      others[#others + 1] = found[at + 1]
    end
  end
  all[i] = others
end
return all
"""
)
"""KEYS: hashes of copies. ARGV: for each, the partition to leave out. Returns a flat list of field and value each."""

REPLACE_HEAD = Script(
    """
local found = redis.call('GET', KEYS[1]) or ''
if found == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) end
return found
"""
)
"""KEYS: a head. ARGV: the head expected there, the head to write. Returns what it found."""

REFUSED = -1
"""What a script returns that has done nothing, because the caller owns the partition no more."""

_ALL = (CLAIM, RAISE_EPOCH, WRITE_ROWS, PUBLISH_COPIES, READ_COPIES, DELETE_ROWS, DELETE_COPIES, REPLACE_HEAD)
TEXT_BY_SHA = {script.sha: script.text for script in _ALL}
