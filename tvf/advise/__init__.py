"""A first answer for 5 to 10 per cent of the price of a sweep: which fractions are promising?"""

from tvf.advise.advice import FRACTIONS, Advice, advise
from tvf.advise.sentences import describe_advice, tabulate_advice

__all__ = [
    "Advice",
    "FRACTIONS",
    "advise",
    "describe_advice",
    "tabulate_advice",
]
