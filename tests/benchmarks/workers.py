"""Contestants that do no work."""

import time


def sleeper(seconds=0.0, units=1):
    def work():
        time.sleep(seconds)
        return units

    work.facts = {"seconds": seconds}
    return work


def holder(mib):
    held = []

    def work():
        held.append(bytearray(mib << 20))
        return 1

    return work


def broken():
    raise RuntimeError("no such luck")
