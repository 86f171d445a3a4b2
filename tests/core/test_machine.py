from shoestring.core import machine


def test_the_peak_resident_set_sees_an_allocation():
    before = machine.peak_rss_bytes()
    block = bytearray(max(0, before - machine.rss_bytes()) + 50_000_000)
    for i in range(0, len(block), 4096):
        block[i] = 1
    assert machine.rss_bytes() > 50_000_000
    assert machine.peak_rss_bytes() - before > 30_000_000
    assert machine.peak_rss_bytes() < machine.total_memory_bytes()


def test_what_others_take_is_what_the_system_counts_while_this_process_waits(monkeypatch):
    moments = iter([(100, 1000), (160, 1200), (0, 0), (0, 0)])
    monkeypatch.setattr(machine, "_core_times", lambda: next(moments))
    assert machine.others_load(0.0) == 60 / 200
    assert machine.others_load(0.0) is None
    monkeypatch.undo()
    times = machine._core_times()
    assert times is None or 0 < times[0] <= times[1]
