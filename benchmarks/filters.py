"""Filters and duplicates: how fast documents are judged, beside datatrove, datasketch and a Python set.

    python -m benchmarks.filters

The text is the standard library's source, its comments and docstrings alone, which is prose enough for most rules to be
looked at. datatrove's filters get the same words for nothing (they are split once, outside its time), so what is compared
is the rules; ours are timed with and without splitting. Rounds alternate, medians count, in seconds of one thread's
processor time.
"""

from __future__ import annotations

import io
import json
import random
import statistics
import time
import tokenize
import tracemalloc
from collections.abc import Callable
from typing import Any

from benchmarks.measure import table
from shoestring.data.quality import filters
from shoestring.data.quality.config import NearDuplicateConfig, QualityConfig
from shoestring.data.quality.duplicates import Seen
from shoestring.data.quality.near_duplicates import bucket_keys
from shoestring.data.quality.review import Reviewer
from shoestring.data.quality.words import plain_words, words_of
from shoestring.data.sources import Source
