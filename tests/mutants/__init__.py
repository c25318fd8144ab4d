"""Named faults in the real code, switched on one at a time, to show that the tests would notice each of them.

A mutant is a replacement of text in one source file, made while that file is imported by a process of its own
(``mechanism``). So nothing in the product knows of mutants: no switch is in a wheel, and none can be left on.
"""
