from tests.e2e.hostile.arena import Arena
def test_x(arena: Arena) -> None:
    e = arena.run("say('answer', post()); say(sorted(os.environ)); say(os.environ['LD_PRELOAD'], os.environ['HOST'])")
    print(e.text, e.failure, e.took_s)
    assert 0
