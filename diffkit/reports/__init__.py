"""Reports: a page about a set of runs, made from their files.

A report compares *variants*: sets of runs that differ only in their seed. `report` reads the runs, averages
over the seeds of each variant, and writes a Markdown page with pictures.
"""

from diffkit.reports.base import Report as Report
from diffkit.reports.base import report as report
from diffkit.reports.variants import Estimate as Estimate
from diffkit.reports.variants import Variant as Variant
