"""One process of a training that several processes share, for test_devices: OUT ADDRESS COUNT INDEX STEPS WAY."""

import sys
import time

import cases
import jax

import qptlab as ql

if __name__ == "__main__":
    out, address, count, index, steps, way = sys.argv[1:]
    if int(count) > 1:
        jax.distributed.initialize(address, int(count), int(index))
    trainer = ql.Trainer(
        ql.Molecule.from_name("water"), cases.QUICK_METHOD, cases.QUICK_MODEL, cases.quick(int(steps)), out=out,
        resume=way == "resume",
    )
    if way == "stop" and index == "0":  # the other processes end together with this one
        trainer.start()
        while trainer.is_alive and trainer.step < 3:
            time.sleep(0.01)
        trainer.stop()
    trainer.run()
