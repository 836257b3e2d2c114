"""What is compiled of Skerry, and may be missing: without a compiler everything works, a little slower."""

import numpy
from setuptools import Extension, setup

_WITHIN = "edge_agent/skerry_agent/engine/_within.h"


def _compiled(package: str, name: str, *libraries: str) -> Extension:
    return Extension(
        f"skerry_agent.{package}.{name}",
        [f"edge_agent/skerry_agent/{package}/{name}.c"],
        depends=[_WITHIN],
        include_dirs=[numpy.get_include()],
        libraries=list(libraries),
        extra_compile_args=["-O3", "-fno-trapping-math", "-fno-math-errno", "-Wall"],
        optional=True,
    )


setup(
    ext_modules=[
        _compiled("engine", "_arrays"),
        _compiled("serving", "_slots"),
        _compiled("serving", "_http2", "nghttp2"),
    ]
)
