from tests.fake_gpu.environment import is_fake

collect_ignore_glob = [] if is_fake() else ["test_*.py"]
