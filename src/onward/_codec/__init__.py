"""The parts of `onward.codec`, which alone uses them: hints and JSON backends, comparison, frozen copies."""
