"""The one part of Skerry that is compiled, and may be missing: without a compiler everything works, a little slower."""

import numpy
from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "skerry_agent.engine._arrays",
            ["edge_agent/skerry_agent/engine/_arrays.c"],
            include_dirs=[numpy.get_include()],
            extra_compile_args=["-O3", "-fno-trapping-math", "-fno-math-errno", "-Wall"],
            optional=True,
        )
    ]
)
