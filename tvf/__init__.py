"""tvf: how much of a pretrained vision network should train?"""

__version__ = "0.1.0"
