"""Counts checks, names those that fail, and closes with the line that test runners are read for."""
import sys


class Tally:
    def __init__(self):
        self.passed = 0
        self.failed = 0

    def check(self, holds, what):
        """One check; `what` is printed if it does not hold."""
        if holds:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED {what}", file=sys.stderr)
        return bool(holds)

    def attempt(self, what, work):
        """Runs `work` and gives its result. An exception is a failed check, and the result is None."""
        try:
            result = work()
        except Exception as error:  # whatever a reader throws is what we want to know
            self.check(False, f"{what}: {type(error).__name__}: {error}")
            return None
        self.passed += 1
        return result

    def close(self):
        """Prints `N passed, N failed`; gives the exit status."""
        print(f"{self.passed} passed, {self.failed} failed")
        return 0 if self.failed == 0 and self.passed > 0 else 1
