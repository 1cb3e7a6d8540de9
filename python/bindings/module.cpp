#include "rooms.h"

PYBIND11_MODULE(_C, m) {
  using namespace headkit::bindings;
  m.doc() = "C++ core of headkit.";
  register_core(m);
  register_kernels(m);
  register_attention(m);
  register_feed_forward(m);
  register_models(m);
  register_distributed(m);
  register_scorers(m);
  register_agreement(m);
  register_gates(m);
  register_learned_gates(m);
  register_linear_probe(m);
  register_layer_gate(m);
  register_training(m);
  register_rung_trainer(m);
  register_second_look(m);
  register_static_stage(m);
  register_calibration(m);
  register_pruners(m);
  register_control(m);
  register_hybrid(m);
  register_persistence(m);
  register_encoder(m);
  register_explain(m);
  register_effects(m);
  register_roles(m);
  register_syntax(m);
  register_decisions(m);
  register_trust(m);
  register_known_roles(m);
  register_report(m);
}
