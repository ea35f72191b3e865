"""Slurm's short forms of node lists and task counts."""

import pytest

from dupr_tf.errors import UserError
from dupr_tf.launching.node_list import MOST_HOSTS, expand_counts, expand_node_list


@pytest.mark.parametrize("text, hosts", [
    ("node7", ["node7"]),
    ("a,b,c", ["a", "b", "c"]),
    ("node[1-3]", ["node1", "node2", "node3"]),
    ("node[8-11]", ["node8", "node9", "node10", "node11"]),
    ("node[08-11]", ["node08", "node09", "node10", "node11"]),
    ("node[001-003,007]", ["node001", "node002", "node003", "node007"]),
    ("n[099-101]", ["n099", "n100", "n101"]),
    ("n[98-101]", ["n98", "n99", "n100", "n101"]),
    ("n[5]", ["n5"]),
    ("n[3,1-2]", ["n3", "n1", "n2"]),  # the order of the list, not of the numbers
    ("n[1-2],login,gpu[07-08]", ["n1", "n2", "login", "gpu07", "gpu08"]),
    ("n[1-2]-ib", ["n1-ib", "n2-ib"]),
    ("rack[0-1]node[03-04]", ["rack0node03", "rack0node04", "rack1node03", "rack1node04"]),
    ("cn-01.hpc.example,cn-02.hpc.example", ["cn-01.hpc.example", "cn-02.hpc.example"]),
    ("10.0.0.[1-2]", ["10.0.0.1", "10.0.0.2"]),
    ("[1-2]", ["1", "2"]),
    (" n[1-2] ", ["n1", "n2"]),
])  # fmt: skip
def test_node_lists(text, hosts):
    assert expand_node_list(text) == hosts


def test_as_many_hosts_as_are_allowed():
    assert len(expand_node_list(f"n[1-{MOST_HOSTS}]")) == MOST_HOSTS


@pytest.mark.parametrize("text, what", [
    ("", "a host named ''"),
    (",", "a host named ''"),
    ("a,,b", "a host named ''"),
    ("node[1-3", "brackets that do not match"),
    ("node1-3]", "brackets that do not match"),
    ("node[[1-3]]", "brackets that do not match"),
    ("node][1", "brackets that do not match"),
    ("node[]", "[]"),
    ("node[3-1]", "a range that falls, 3-1"),
    ("node[1-]", "[1-]"),
    ("node[-3]", "[-3]"),
    ("node[1--3]", "[1--3]"),
    ("node[a-c]", "[a-c]"),
    ("node[1-3;5]", "[1-3;5]"),
    ("node[1.5]", "[1.5]"),
    ("node[²]", "[²]"),
    ("node[1-99999999999]", "[1-99999999999]"),
    ("node[1-999999999]", "more than 10,000 hosts"),
    ("a[1-9999],b[1-2]", "more than 10,000 hosts"),
    ("a[1-200]b[1-200]", "more than 10,000 hosts"),
    ("node[1-3,2]", "node2 twice"),
    ("a,a", "a twice"),
    ("node 1", "a host named 'node 1'"),
    ("n';reboot;'", "a host named"),
    ("-oProxyCommand", "a host named"),
    ("(null)", "a host named '(null)'"),
    ("nödé", "a host named"),
])  # fmt: skip
def test_malformed_node_list_is_refused_in_one_line(text, what):
    with pytest.raises(UserError) as error:
        expand_node_list(text)
    assert what in error.value.problem and error.value.fix and "\n" not in str(error.value)


@pytest.mark.parametrize("text, counts", [("1", [1]), ("2(x3),1", [2, 2, 2, 1]), ("4,2(x2)", [4, 2, 2])])
def test_counts(text, counts):
    assert expand_counts(text) == counts


@pytest.mark.parametrize("text", ["", "0", "2(x0)", "2(x", "2x3", "-1", "1,,1", "1(x99999)", "two"])
def test_malformed_count_is_refused(text):
    with pytest.raises(UserError) as error:
        expand_counts(text)
    assert repr(text) in error.value.problem
