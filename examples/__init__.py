"""One small file for each way to extend the project; run by the tests."""
