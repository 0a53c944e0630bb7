"""
A run of the installed libraries, stage by stage, whichever engine watches it: without data in a trace, with data in a measurement.

What is loaded, quantised, prepared, wrapped and stepped is the same code here; what differs (what a tensor is, where it lives, what the
loader reads) is the watching `Books`' affair.
"""
