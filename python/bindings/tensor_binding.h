#pragma once

// What every file that shows tensors to Python includes; pybind wants the same in all of them.
#include <ATen/ATen.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
