"""The parts of `onward demo`: the pipeline, its classifier, the two worker processes, the proof, the screen."""
