"""Mutation testing of the arithmetic and its verification: is every small fault seen by a test?

`sites` says which faults there are, `reach` which tests meet each line, `trials` runs them.
"""
