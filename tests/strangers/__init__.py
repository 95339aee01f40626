"""What a stranger would add, a file each: a method, a task, a way to answer.  test_contracts.py
adds them."""
