"""Connections beyond a bound are refused, with one line at the beginning and one at the end."""

import logging
import resource

from log_lines import told

from globalstore.rpc.admission import Admission


def test_the_number_of_connections_is_bounded_and_told_once(caplog):
    caplog.set_level(logging.INFO)
    admission = Admission(32, 0)
    assert admission.admits(31, 40)
    assert [admission.admits(32, 40) for _ in range(100)] == [False] * 100
    assert admission.admits(31, 40)
    assert len(caplog.records) == 1  # it is as good as full still
    assert "as many connections as it may: 32" in told(caplog)[0]
    assert admission.admits(10, 40)
    assert told(caplog)[1].endswith("accepted again refused=100")
    assert len(caplog.records) == 2


def test_files_are_kept_free_for_others():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    admission = Admission(1 << 30, 100)
    assert admission.admits(1, limit - 101)
    assert not admission.admits(1, limit - 100)


def test_a_process_that_may_open_few_files_takes_calls_all_the_same():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert Admission(1 << 30, 10 * limit).admits(1, limit // 2 - 1)
