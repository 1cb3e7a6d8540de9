#include "headkit/gates/gate_policy.h"

#include <functional>

#include "core/json.h"
#include "headkit/core/error.h"
#include "headkit/gates/calibrated_policy.h"
#include "headkit/gates/escalation.h"
#include "headkit/gates/hysteresis_gate.h"
#include "headkit/gates/layer_gate.h"
#include "headkit/gates/linear_gate.h"
#include "headkit/gates/mask_policy.h"
#include "headkit/gates/reactivation.h"
#include "headkit/gates/second_look.h"

namespace headkit {
namespace {

struct Entry {
  PolicyInfo info;
  std::function<std::shared_ptr<GatePolicy>(const std::string&)> read;
};

const std::vector<Entry>& entries() {
  static const std::vector<Entry> all{
      {{"mask", "the heads of a static mask, for every input", "Michel, Levy, Neubig 2019", "none",
        "a mask", "before layer 0"},
       MaskPolicy::from_json},
      {{"linear_gate",
        "z = W (u - mu) + s with u the mean layer-0 input over valid tokens; on where z >= "
        "threshold",
        "regression on per-input gate gradients after Akhauri et al. 2024; static logits as bias",
        "one pass over the layer-0 input and one [L*H, D] product per sample",
        "labelled examples to fit, others to calibrate", "before layer 0"},
       LinearGate::from_json},
      {{"layer_gate",
        "z_l = W_l (f_l - mu_l) + s_l with f_l the mean state before layer l and scalars beside "
        "it; "
        "on where z_l >= threshold",
        "regression on per-input gate gradients after Akhauri et al. 2024; static logits as bias",
        "one pass over the input of each layer and one [H, D] product per sample and layer",
        "labelled examples to fit, others to calibrate", "before layers with contested heads"},
       LayerGate::from_json},
      {{"escalation",
        "the lowest rung of a ladder for all samples; those with low confidence run again on the "
        "next one, and so on",
        "cascade of nested rungs; threshold by conformal risk control, Angelopoulos et al. 2024",
        "further runs, without the layers that rungs share, for the samples that climb",
        "unlabelled examples to calibrate", "after the output"},
       Escalation::from_json},
      {{"calibrated", "another policy whose lambda stays at or above the value that was calibrated",
        "Angelopoulos et al. 2021, 2024", "that of the policy",
        "that of the policy; for "
        "the calibration the model at each grid value on examples of its own",
        "as the policy does"},
       CalibratedPolicy::from_json},
      {{"reactivation",
        "first layers on the lowest rung of a ladder; from the state there a linear probe picks "
        "the rung of the others",
        "linear probe after Alain, Bengio 2017, or predicted loss after Yoo, Kweon 2019",
        "one product of the pooled state with the probe per sample",
        "unlabelled examples to fit, others to calibrate", "before a layer midway"},
       Reactivation::from_json},
      {{"hysteresis",
        "a linear gate whose heads switch only beyond a margin around the threshold, from the "
        "second "
        "decision of a sequence on",
        "Schmitt trigger", "that of the linear gate", "none beside those of the linear gate",
        "before layer 0"},
       HysteresisGate::from_json},
      {{"second_look",
        "a linear gate or layer gate; near its threshold the size of the head's integer scores "
        "times that of its values decides",
        "Jaradat 2024 (HDP), with int8, centred keys, values and a relative threshold",
        "that of the gate; Q, K and integer scores of the heads near the threshold",
        "unlabelled examples to fit, others to calibrate", "before layers with contested heads"},
       SecondLook::from_json},
  };
  return all;
}

}  // namespace

const std::vector<PolicyInfo>& policies() {
  static const std::vector<PolicyInfo> all = [] {
    std::vector<PolicyInfo> infos;
    for (const Entry& entry : entries()) infos.push_back(entry.info);
    return infos;
  }();
  return all;
}

std::shared_ptr<GatePolicy> policy_from_json(const std::string& text) {
  const std::string name = string_member("policy", parse_json("policy", text), "policy");
  std::string known;
  for (const Entry& entry : entries()) {
    if (entry.info.name == name) return entry.read(text);
    known += (known.empty() ? "" : ", ") + entry.info.name;
  }
  throw std::invalid_argument(error_message("policy", "one of " + known, name));
}

}  // namespace headkit
