"""Reports: a page about a set of runs, from the files that they left.

A *variant* is what is compared: the runs that are equal in every choice but the seed. `report` reads the
runs, means over the seeds of each variant, and writes a Markdown page with its pictures.
"""

from diffkit.reports.base import Report as Report
from diffkit.reports.base import report as report
from diffkit.reports.variants import Estimate as Estimate
from diffkit.reports.variants import Variant as Variant
