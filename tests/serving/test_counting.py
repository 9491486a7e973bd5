"""How handles choose a replica: all of a few are compared, a sample of many, and their number is taken down."""

from cascade.serving import replicas
from cascade.serving.counting import MOST_ASKED, CountingRouter


def router() -> CountingRouter:
    return CountingRouter.__new__(CountingRouter)  # choosing needs nothing of what Serve sets up


async def test_of_a_few_replicas_all_are_compared_in_an_order_that_changes():
    few = list("abcd")
    orders = set()
    for _ in range(50):
        (asked,) = await router().choose_replicas(few)
        assert sorted(asked) == few
        orders.add(tuple(asked))
    assert len(orders) > 5


async def test_of_many_replicas_a_sample_is_compared():
    (asked,) = await router().choose_replicas(list(range(100)))
    assert len(set(asked)) == MOST_ASKED


async def test_without_a_replica_there_is_nothing_to_compare():
    assert await router().choose_replicas([]) == []


def test_replicas_are_unknown_until_a_handle_has_heard_of_them():
    assert replicas.running("a stage that nobody calls") is None
    replicas.note("a stage of this test", 3)
    assert replicas.running("a stage of this test") == 3
