"""The two labels that are not classes.

Classes are numbered 0 .. K-1 and there is no background class: an anchor that holds nothing is `BACKGROUND`,
one that nothing may be learnt from is `IGNORE`. In a table of ground truth, a row labelled `IGNORE` is an ignore
region and a row labelled `BACKGROUND` is padding.
"""

BACKGROUND = -1
IGNORE = -2
