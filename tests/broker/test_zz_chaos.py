import random, sys, time, signal, threading
from pathlib import Path
import pytest
from tests.broker.harness import *
from stream.stack import RedisServer
pytestmark=[pytest.mark.kafka,pytest.mark.redis]

@pytest.mark.parametrize("seed", [1])
def test_chaos(deploy, tmp_path, seed):
    r = random.Random(seed)
    red = RedisServer(tmp_path/"r", append_only=True).start()
    d = deploy(partitions=4, redis=red, batch__max_events=60, redis__timeout_ms=300)
    ws = {n: d.worker(f"w{n}") for n in range(3)}
    d.started(*ws.values())
    evs = list(payments(16000, accounts=150, seed=seed)); labs=0
    stop=time.monotonic()+150
    i=0
    codes=[]
    while i < len(evs):
        n=r.randrange(100,400)
        d.publish(messages_of(evs[i:i+n]))
        if i: d.publish_labels(r.sample(evs[:i], 3))
        i+=n
        time.sleep(r.random()*1.0)
        for k,w in ws.items():
            if w.process is None:
                codes.append((k,w.wait_exit(),[l for l in w.output().splitlines() if l.startswith("error")]))
                ws[k]=d.worker(f"w{k}"); ws[k].launch()
        x=r.random()
        k=r.randrange(3); w=ws[k]
        if w.process is None or not w.logs("started"): continue
        if x<0.15: w.send(signal.SIGKILL); print("kill",k,flush=True)
        elif x<0.22: w.send(signal.SIGTERM); print("term",k,flush=True)
        elif x<0.3:
            print("stop",k,flush=True)
            w.send(signal.SIGSTOP); t=threading.Timer(r.choice([2,10]), lambda w=w: w.process and w.send(signal.SIGCONT)); t.start()
        elif x<0.36:
            print("redis kill",flush=True); red.kill(); red.append_only = r.random()<0.5; time.sleep(r.random()*2); red.start()
        elif x<0.38:
            import redis as R
            print("flushall",flush=True); R.Redis.from_url(red.url).flushall()
    print(codes)
    for k,w in ws.items():
        if w.process is None: ws[k]=d.worker(f"w{k}"); ws[k].launch()
    try:
        print("done", d.wait_done(120))
    finally:
        for k,w in ws.items(): print(w.output()[-3000:])
    s = d.check_exactly_once()
    print(len(s), d.dead_letters()[:3])
    for k,w in ws.items():
        if w.process: print(k, w.metric("riskstream_identity_gap_events"))
    red.kill()
