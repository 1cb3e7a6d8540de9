#include "headkit/gates/mask_policy.h"

#include <ATen/ATen.h>

#include "gates/early_record.h"
#include "gates/policy_json.h"
#include "gates/tensor_text.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {
constexpr auto kOperation = "mask_policy";
}

MaskPolicy::MaskPolicy(HeadMask mask, at::Tensor dropped_output)
    : mask_(std::move(mask)), dropped_output_(std::move(dropped_output)) {
  HEADKIT_CHECK(mask_.layers() > 0, kOperation, "a mask of shape [layers, heads]", "an empty one");
  GateSet{{}, dropped_output_}.check(kOperation, -1, mask_.layers(), mask_.heads());
}

GateSet MaskPolicy::decide(const GateInput& input, State& state) const {
  HEADKIT_CHECK(input.hidden.defined() && input.hidden.dim() == 3, kOperation,
                "hidden states of shape [batch, tokens, D]",
                input.hidden.defined() ? input.hidden.sizes() : at::IntArrayRef{});
  const HeadMask present = state.present.layers() > 0 ? mask_.intersect(state.present) : mask_;
  const int64_t batch = input.hidden.size(0);
  GateSet gates;
  gates.heads = present.keep()
                    .to(gate_options(input.hidden))
                    .unsqueeze(0)
                    .expand({batch, mask_.layers(), mask_.heads()})
                    .contiguous();
  gates.dropped_output = fitting_dropped_output(dropped_output_, input.hidden);
  if (state.record) {
    const std::vector<int64_t> tokens = valid_tokens(input.hidden, input.attention_mask);
    for (int64_t b = 0; b < batch; ++b) {
      DecisionRecord record = start_record(*this, state, mask_.layers(), mask_.heads(), tokens[b]);
      record.mode = "static";
      for (int64_t l = 0; l < mask_.layers(); ++l) {
        for (int64_t h = 0; h < mask_.heads(); ++h) {
          const bool kept = present.contains({l, h});
          HeadDecision decision;
          decision.layer = l;
          decision.head = h;
          decision.state = kept ? "always_on" : "pruned";
          decision.gate = kept ? 1 : 0;
          decision.reason = kept || !mask_.contains({l, h}) ? "mask" : "removed";
          record.heads.push_back(decision);
        }
      }
      finish_record(record, state);
    }
  }
  return gates;
}

std::string MaskPolicy::to_json() const {
  Json json = policy_json("mask");
  json["mask"] = parse_json(kOperation, mask_.to_json());
  json["dropped_output"] = tensor_to_text(kOperation, dropped_output_);
  return json.dump();
}

std::shared_ptr<MaskPolicy> MaskPolicy::from_json(const std::string& text) {
  const Json json = read_policy_json("mask", text);
  return std::make_shared<MaskPolicy>(
      HeadMask::from_json(member(kOperation, json, "mask").dump()),
      tensor_from_text(kOperation, member(kOperation, json, "dropped_output")));
}

}  // namespace headkit
