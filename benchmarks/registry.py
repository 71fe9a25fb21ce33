"""All contenders by the names that workloads call them."""

from __future__ import annotations

from benchmarks.contenders import CONTENDERS as OF_VALUES
from benchmarks.contenders import Contender
from benchmarks.query_contenders import QUERY_CONTENDERS
from benchmarks.s3_contenders import S3_CONTENDERS
from benchmarks.store_contenders import STORE_CONTENDERS
from benchmarks.wrapper_contenders import WRAPPER_CONTENDERS

CONTENDERS: dict[str, type[Contender]] = {
    **OF_VALUES,
    **STORE_CONTENDERS,
    **WRAPPER_CONTENDERS,
    **S3_CONTENDERS,
    **QUERY_CONTENDERS,
}
