#pragma once

#include <ATen/core/Tensor.h>

#include "headkit/pruners/pruner.h"
#include "pruners/dense_walk.h"

namespace headkit {

/// Places of the channels of some units, `width` channels each.
at::Tensor channels_of(const at::Tensor& units, int64_t width);

/// An output projection re-fitted to its targets: `weight` [D, n] in the columns `kept`, 0 in the
/// others, and `bias` [D], where there is one. `ridge` holds it to the weight that is there, in
/// units of the mean squared input. Layer and block are for the caller to say.
OutputRefit refit_output(const ProjectionMoments& moments, const at::Tensor& weight,
                         const at::Tensor& bias, const at::Tensor& kept, double ridge);

}  // namespace headkit
