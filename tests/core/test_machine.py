from shoestring.core import machine


def test_the_peak_resident_set_sees_an_allocation():
    before = machine.peak_rss_bytes()
    block = bytearray(max(0, before - machine.rss_bytes()) + 50_000_000)
    for i in range(0, len(block), 4096):
        block[i] = 1
    assert machine.rss_bytes() > 50_000_000
    assert machine.peak_rss_bytes() - before > 30_000_000
    assert machine.peak_rss_bytes() < machine.total_memory_bytes()
