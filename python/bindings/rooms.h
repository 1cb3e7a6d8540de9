#pragma once

#include "tensor_binding.h"

// For module.cpp alone, so that a new room rebuilds one file.
namespace headkit::bindings {

void register_core(pybind11::module_& m);
void register_kernels(pybind11::module_& m);
void register_attention(pybind11::module_& m);
void register_feed_forward(pybind11::module_& m);
void register_models(pybind11::module_& m);
void register_distributed(pybind11::module_& m);
void register_scorers(pybind11::module_& m);
void register_agreement(pybind11::module_& m);
void register_gates(pybind11::module_& m);
void register_learned_gates(pybind11::module_& m);
void register_linear_probe(pybind11::module_& m);
void register_layer_gate(pybind11::module_& m);
void register_training(pybind11::module_& m);
void register_rung_trainer(pybind11::module_& m);
void register_second_look(pybind11::module_& m);
void register_static_stage(pybind11::module_& m);
void register_calibration(pybind11::module_& m);
void register_control(pybind11::module_& m);
void register_pruners(pybind11::module_& m);
void register_hybrid(pybind11::module_& m);
void register_persistence(pybind11::module_& m);
void register_encoder(pybind11::module_& m);
void register_explain(pybind11::module_& m);
void register_effects(pybind11::module_& m);
void register_roles(pybind11::module_& m);
void register_decisions(pybind11::module_& m);
void register_trust(pybind11::module_& m);
void register_syntax(pybind11::module_& m);
void register_known_roles(pybind11::module_& m);
void register_report(pybind11::module_& m);

}  // namespace headkit::bindings
