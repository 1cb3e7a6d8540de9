#pragma once

#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"

namespace headkit {

/// What `objective` compares the outputs of a batch with, without a graph; undefined where it
/// compares with nothing. `embedded`: the state before layer 0. `output`: what `model` itself makes
/// of it with all gates 1, if that is known.
at::Tensor dense_output(GatedModel& model, const Objective& objective, const ModelState& embedded,
                        const at::Tensor& output = {});

}  // namespace headkit
