#include "headkit/gates/second_look.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "gates/affine_rows.h"
#include "gates/early_record.h"
#include "gates/head_rule.h"
#include "gates/policy_json.h"
#include "gates/tensor_text.h"
#include "headkit/core/error.h"
#include "headkit/gates/integer_scores.h"
#include "headkit/gates/layer_gate.h"
#include "headkit/gates/linear_gate.h"

namespace headkit {
namespace {

constexpr auto kOperation = "second_look";

// What both kinds of gates say, read alike.
struct Gate {
  const LinearGate* early = nullptr;
  const LayerGate* layered = nullptr;

  explicit Gate(const AdjustablePolicy* policy)
      : early(dynamic_cast<const LinearGate*>(policy)),
        layered(dynamic_cast<const LayerGate*>(policy)) {
    HEADKIT_CHECK(early != nullptr || layered != nullptr, kOperation, "a LinearGate or a LayerGate",
                  policy == nullptr ? "none" : policy->name());
  }
  const at::Tensor& fixed() const {
    return early ? early->settings().fixed : layered->settings().fixed;
  }
  double threshold() const {
    return early ? early->settings().threshold : layered->settings().threshold;
  }
  int64_t floor() const {
    return early ? early->settings().min_heads : layered->settings().min_heads;
  }
};

struct Change {
  int64_t sample, layer, head;
  bool open;
};

// What is known of a batch between its first and its last decision.
struct LookState final : GatePolicy::State {
  std::unique_ptr<GatePolicy::State> of_gate;
  GateSet gates;      // of the gate, as it last decided
  at::Tensor logits;  // of an early gate, [B, L, H]
  std::vector<Change> changes;
  size_t records_before = 0;
};

// Heads that the floor holds open whatever an estimate says: the best ones, as many as it asks for.
std::vector<char> held_by_floor(const double* logit, const int8_t* fixed, int64_t heads,
                                int64_t floor) {
  std::vector<HeadReason> reason(static_cast<size_t>(heads));
  decide_heads(logit, {fixed, heads, std::numeric_limits<double>::infinity(), floor},
               reason.data());
  std::vector<char> held;
  for (const HeadReason one : reason) held.push_back(one != HeadReason::kClosed);
  return held;
}

// Places of the layer's heads among those that are physically there; -1 = gone.
std::vector<int64_t> places_there(GatedModel& model, int64_t layer, int64_t heads) {
  const HeadMask there = model.heads();
  std::vector<int64_t> places;
  int64_t next = 0;
  for (int64_t h = 0; h < heads; ++h) places.push_back(there.contains({layer, h}) ? next++ : -1);
  return places;
}

at::Tensor rows_of(const at::Tensor& weight, int64_t unit, int64_t width) {
  return weight.slice(0, unit * width, (unit + 1) * width)
      .detach()
      .to(at::kCPU, at::kDouble)
      .contiguous();
}

// X W^T + b of one unit over the rows of X, double [T, dh], in a fixed order.
at::Tensor projected(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& bias,
                     int64_t unit, int64_t width) {
  const at::Tensor base =
      bias.defined() ? rows_of(bias, unit, width) : at::zeros({width}, at::kDouble);
  return affine_rows(rows, at::zeros({rows.size(1)}, at::kDouble),
                     rows_of(weight, unit, width).t().contiguous(), base);
}

// || x - mean x ||_F over the rows, summed in order.
double spread_of(const at::Tensor& rows) {
  const int64_t tokens = rows.size(0), width = rows.size(1);
  const double* const x = rows.const_data_ptr<double>();
  double sum = 0;
  for (int64_t d = 0; d < width; ++d) {
    double mean = 0;
    for (int64_t t = 0; t < tokens; ++t) mean += x[t * width + d];
    mean /= static_cast<double>(tokens);
    for (int64_t t = 0; t < tokens; ++t) {
      const double deviation = x[t * width + d] - mean;
      sum += deviation * deviation;
    }
  }
  return std::sqrt(sum);
}

// theta / sqrt(T) for what `wanted(sample, place in heads)` asks for; 0 elsewhere. `weight`: double
// [H] of the layer. Adds the cost to `flops` [B], where it is defined.
template <typename Wanted>
at::Tensor estimate(GatedModel& model, int64_t layer, const std::vector<int64_t>& heads,
                    const at::Tensor& weight, const at::Tensor& hidden,
                    const at::Tensor& attention_mask, const Wanted& wanted, at::Tensor flops) {
  const HeadLayout layout = model.layout();
  const AttentionWeights own = model.attention(layer);
  const std::vector<int64_t> places = places_there(model, layer, layout.heads);
  std::vector<int64_t> kept;
  for (int64_t h = 0; h < layout.heads; ++h) {
    if (places[static_cast<size_t>(h)] >= 0) kept.push_back(h);
  }
  const std::vector<int64_t> kv_places = layout.kv_places_of(kept);
  const int64_t batch = hidden.size(0), width = layout.head_dim;
  const double scale = 1 / std::sqrt(static_cast<double>(width));
  const at::Tensor states = hidden.detach().to(at::kCPU);
  const at::Tensor mask =
      attention_mask.defined() ? attention_mask.to(at::kCPU, at::kBool) : at::Tensor();
  at::Tensor found = at::zeros({batch, static_cast<int64_t>(heads.size())}, at::kDouble);
  for (int64_t b = 0; b < batch; ++b) {
    at::Tensor rows;
    double spread = 0;
    for (size_t i = 0; i < heads.size(); ++i) {
      const int64_t place = places[static_cast<size_t>(heads[i])];
      if (place < 0 || !wanted(b, i)) continue;
      if (!rows.defined()) {
        rows = states[b];
        if (mask.defined()) rows = rows.index_select(0, mask[b].nonzero().flatten());
        rows = rows.to(at::kDouble).contiguous();
        if (rows.size(0) == 0) break;
        spread = spread_of(rows);
      }
      const at::Tensor q = projected(rows, own.q, own.q_bias, place, width);
      const at::Tensor k =
          projected(rows, own.k, own.k_bias, kv_places[static_cast<size_t>(place)], width);
      const auto tokens = static_cast<double>(rows.size(0));
      const double theta = integer_score_norm(q, k, scale) * spread *
                           weight.const_data_ptr<double>()[heads[i]] / tokens;
      found.mutable_data_ptr<double>()[b * found.size(1) + static_cast<int64_t>(i)] =
          theta / std::sqrt(tokens);
      if (flops.defined()) {
        flops.mutable_data_ptr<double>()[b] +=
            4 * tokens * static_cast<double>(layout.model_dim * width) +
            integer_score_flops(rows.size(0), width);
      }
    }
  }
  return found;
}

// ||Wv_h||_2 * ||Wo_h||_F of each head that is there, double [L, H]; 0 for others.
at::Tensor value_weights(GatedModel& model) {
  const HeadLayout layout = model.layout();
  const int64_t width = layout.head_dim;
  at::Tensor weights = at::zeros({layout.layers, layout.heads}, at::kDouble);
  for (int64_t l = 0; l < layout.layers; ++l) {
    const AttentionWeights own = model.attention(l);
    const std::vector<int64_t> places = places_there(model, l, layout.heads);
    std::vector<int64_t> kept;
    for (int64_t h = 0; h < layout.heads; ++h) {
      if (places[static_cast<size_t>(h)] >= 0) kept.push_back(h);
    }
    const std::vector<int64_t> kv_places = layout.kv_places_of(kept);
    for (size_t i = 0; i < kept.size(); ++i) {
      const double value = std::get<1>(at::linalg_svd(rows_of(own.v, kv_places[i], width), false))
                               .max()
                               .item<double>();
      const double output =
          rows_of(own.o.t(), static_cast<int64_t>(i), width).norm().item<double>();
      weights[l][kept[i]] = value * output;
    }
  }
  return weights;
}

// Runs a batch and refuses attention that the estimate is not made for.
void check_attention(GatedModel& model, const Batch& batch) {
  const HeadLayout layout = model.layout();
  const double scale = 1 / std::sqrt(static_cast<double>(layout.head_dim));
  ModelState state = model.embed(batch);
  for (int64_t l = 0; l < layout.layers; ++l) {
    Taps taps;
    taps.attention_calls = true;
    const ModelState next = model.run(state, l, l + 1, {}, &taps);
    HEADKIT_CHECK(taps.attention_call.size() == 1, kOperation,
                  "a model that shows the call of each attention block", taps.attention_call.size(),
                  " of layer ", l);
    const AttentionBlockCall& call = taps.attention_call.front();
    const AttentionInput& in = call.input;
    HEADKIT_CHECK(call.x.sizes() == state.hidden.sizes() && at::equal(call.x, state.hidden),
                  kOperation, "attention that reads the state before its layer as it is",
                  "a norm in front of layer ", l);
    HEADKIT_CHECK(!in.is_causal_ && !in.window_ && !in.attn_bias_ && !in.kv_ && !in.rotary_cos_ &&
                      !in.q_norm_weight_ && !in.k_norm_weight_ &&
                      std::abs(in.scale_.value_or(scale) - scale) <= 1e-6 * scale,
                  kOperation, "attention over all tokens by plain queries and keys",
                  "a causal, windowed, biased, rotary, normed or crossed one in layer ", l);
    state = next;
  }
}

}  // namespace

SecondLook::SecondLook(SecondLookSettings settings) : settings_(std::move(settings)) {
  const Gate gate(settings_.gate.get());
  const int64_t layers = gate.fixed().size(0), heads = gate.fixed().size(1);
  HEADKIT_CHECK(settings_.band >= 0 && std::isfinite(settings_.band) && settings_.ratio >= 0 &&
                    std::isfinite(settings_.ratio),
                kOperation, "a finite band and ratio of 0 or more", settings_.band, " and ",
                settings_.ratio);
  const auto fits = [](const at::Tensor& t, at::IntArrayRef shape) {
    return t.defined() && t.sizes() == shape && t.scalar_type() == at::kDouble && t.is_cpu() &&
           t.isfinite().all().item<bool>() && (t >= 0).all().item<bool>();
  };
  HEADKIT_CHECK(fits(settings_.weight, {layers, heads}), kOperation,
                c10::str("finite float64 weights >= 0 of shape [", layers, ", ", heads, "]"),
                settings_.weight.defined() ? c10::str(settings_.weight.sizes()) : "none");
  HEADKIT_CHECK(fits(settings_.median, {layers}) && (settings_.median > 0).all().item<bool>(),
                kOperation, c10::str("finite float64 medians > 0 of shape [", layers, "]"),
                settings_.median.defined() ? c10::str(settings_.median.sizes()) : "none");
  settings_.weight = settings_.weight.contiguous();
  settings_.median = settings_.median.contiguous();
  for (int64_t l = 0; l < layers; ++l) {
    if (l == 0 || gate.fixed()[l].eq(0).any().item<bool>()) decision_layers_.push_back(l);
  }
}

std::unique_ptr<GatePolicy::State> SecondLook::start() const {
  auto state = std::make_unique<LookState>();
  state->of_gate = settings_.gate->start();
  return state;
}

at::Tensor SecondLook::estimates(GatedModel& model, int64_t layer,
                                 const std::vector<int64_t>& heads, const at::Tensor& hidden,
                                 const at::Tensor& attention_mask) const {
  const int64_t layers = settings_.weight.size(0), count = settings_.weight.size(1);
  HEADKIT_CHECK(layer >= 0 && layer < layers, kOperation, c10::str("a layer below ", layers),
                layer);
  for (const int64_t head : heads) {
    HEADKIT_CHECK(head >= 0 && head < count, kOperation, c10::str("heads below ", count), head);
  }
  return estimate(model, layer, heads, settings_.weight[layer], hidden, attention_mask,
                  [](int64_t, size_t) { return true; }, {});
}

GateSet SecondLook::decide(const GateInput& input, State& given) const {
  const Gate gate(settings_.gate.get());
  const int64_t layers = gate.fixed().size(0), heads = gate.fixed().size(1), l = input.layer;
  const auto place = std::find(decision_layers_.begin(), decision_layers_.end(), l);
  HEADKIT_CHECK(place != decision_layers_.end(), kOperation,
                c10::str("to be asked before a layer of ", decision_layers_), "layer ", l);
  HEADKIT_CHECK(input.model != nullptr, kOperation, "the model that runs, for its weights", "none");
  auto* const state = dynamic_cast<LookState*>(&given);
  HEADKIT_CHECK(state != nullptr, kOperation, "a state that start() of this policy gave",
                "another");
  const int64_t batch = input.hidden.size(0);
  const bool first = place == decision_layers_.begin(), last = place + 1 == decision_layers_.end();
  HEADKIT_CHECK(first || (state->gates.heads.defined() && state->gates.heads.size(0) == batch),
                kOperation, "the batch that was decided before the first layer", "another");
  if (first) {
    State& own = *state->of_gate;
    own.record = given.record;
    own.next_input = given.next_input;
    own.layout = given.layout;
    own.present = given.present;
    own.weights_sha256 = given.weights_sha256;
    own.neurons = given.neurons;
    own.records.clear();
    state->changes.clear();
    if (!given.decision_flops.defined() || given.decision_flops.size(0) != batch) {
      given.decision_flops = at::zeros({batch}, at::kDouble);
    }
  }
  at::Tensor logits;  // [B, H] of this layer
  if (gate.early == nullptr) {
    const auto stops = gate.layered->decision_layers();
    if (std::find(stops.begin(), stops.end(), l) != stops.end()) {
      state->gates = gate.layered->decide(input, *state->of_gate);
    }
    logits = gate.layered->logits(l, input.hidden, input.attention_mask);
  } else {
    if (first) {
      state->gates = gate.early->decide(input, *state->of_gate);
      state->logits = gate.early->logits(input.hidden, input.attention_mask);
    }
    logits = state->logits.select(1, l).contiguous();
  }

  const at::Tensor fixed = fixed_heads(kOperation, gate.fixed(), given.present);
  const int8_t* const settled = fixed.const_data_ptr<int8_t>() + l * heads;
  std::vector<int64_t> all(static_cast<size_t>(heads));
  for (int64_t h = 0; h < heads; ++h) all[static_cast<size_t>(h)] = h;
  std::vector<std::vector<char>> held;
  for (int64_t b = 0; b < batch; ++b) {
    if (gate.early == nullptr) {
      held.push_back(
          held_by_floor(logits.const_data_ptr<double>() + b * heads, settled, heads, gate.floor()));
      continue;
    }
    const std::vector<char> whole =
        held_by_floor(state->logits.const_data_ptr<double>() + b * layers * heads,
                      fixed.const_data_ptr<int8_t>(), layers * heads, gate.floor());
    held.emplace_back(whole.begin() + l * heads, whole.begin() + (l + 1) * heads);
  }
  const auto near = [&](int64_t b, size_t h) {
    const double z = logits.const_data_ptr<double>()[b * heads + static_cast<int64_t>(h)];
    return settled[h] == 0 && held[static_cast<size_t>(b)][h] == 0 &&
           std::abs(z - gate.threshold()) < settings_.band;
  };
  const at::Tensor found = estimate(*input.model, l, all, settings_.weight[l], input.hidden,
                                    input.attention_mask, near, given.decision_flops);
  const double enough = settings_.ratio * settings_.median.const_data_ptr<double>()[l];
  GateSet gates = state->gates;
  at::Tensor open = gates.heads.to(at::kCPU, at::kFloat).clone().contiguous();
  float* const on = open.mutable_data_ptr<float>();
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      if (!near(b, static_cast<size_t>(h))) continue;
      const bool runs = found.const_data_ptr<double>()[b * heads + h] >= enough;
      on[(b * layers + l) * heads + h] = runs ? 1 : 0;
      if (given.record) state->changes.push_back({b, l, h, runs});
    }
  }
  gates.heads = open.to(state->gates.heads.options());

  if (given.record && last) {
    for (DecisionRecord& record : state->of_gate->records) record.policy = name();
    for (const Change& change : state->changes) {
      HeadDecision& decision = state->of_gate->records[static_cast<size_t>(change.sample)]
                                   .heads[static_cast<size_t>(change.layer * heads + change.head)];
      decision.gate = change.open ? 1 : 0;
      decision.state = change.open ? "on" : "off";
      decision.reason = "second_look";
    }
    for (int64_t b = 0; b < batch; ++b) {
      DecisionRecord& record = state->of_gate->records[static_cast<size_t>(b)];
      count_record(record, given);
      if (record.flops_run) {
        *record.flops_run += given.decision_flops.const_data_ptr<double>()[b];
      }
      given.records.push_back(std::move(record));
    }
    given.next_input = state->of_gate->next_input;
    state->of_gate->records.clear();
  }
  return gates;
}

std::shared_ptr<GatePolicy> SecondLook::at(double lambda) const {
  SecondLookSettings settings = settings_;
  settings.gate = std::dynamic_pointer_cast<const AdjustablePolicy>(settings_.gate->at(lambda));
  return std::make_shared<SecondLook>(std::move(settings));
}

std::string SecondLook::to_json() const {
  Json json = policy_json(kOperation);
  json["of"] = parse_json(kOperation, settings_.gate->to_json());
  json["band"] = settings_.band;
  json["ratio"] = settings_.ratio;
  json["weight"] = tensor_to_text(kOperation, settings_.weight);
  json["median"] = tensor_to_text(kOperation, settings_.median);
  return json.dump();
}

std::shared_ptr<SecondLook> SecondLook::from_json(const std::string& text) {
  const Json json = read_policy_json(kOperation, text);
  SecondLookSettings settings;
  settings.gate = std::dynamic_pointer_cast<const AdjustablePolicy>(
      policy_from_json(member(kOperation, json, "of").dump()));
  settings.band = number_member(kOperation, json, "band");
  settings.ratio = number_member(kOperation, json, "ratio");
  settings.weight = tensor_from_text(kOperation, member(kOperation, json, "weight"));
  settings.median = tensor_from_text(kOperation, member(kOperation, json, "median"));
  return std::make_shared<SecondLook>(std::move(settings));
}

std::shared_ptr<SecondLook> fit_second_look(GatedModel& model, const DataSource& data,
                                            std::shared_ptr<const AdjustablePolicy> policy,
                                            const SecondLookFit& options) {
  constexpr auto kFit = "fit_second_look";
  const Gate gate(policy.get());
  const HeadLayout layout = model.layout();
  HEADKIT_CHECK(gate.fixed().size(0) == layout.layers && gate.fixed().size(1) == layout.heads, kFit,
                c10::str("a gate of ", layout.layers, " layers of ", layout.heads, " heads"),
                gate.fixed().sizes());
  HEADKIT_CHECK(options.band_share > 0 && options.band_share <= 1, kFit, "a band_share in (0, 1]",
                options.band_share);
  const c10::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  SecondLookSettings settings;
  settings.gate = policy;
  settings.weight = value_weights(model);
  settings.median = at::ones({layout.layers}, at::kDouble);
  std::vector<int64_t> all(static_cast<size_t>(layout.heads));
  for (int64_t h = 0; h < layout.heads; ++h) all[static_cast<size_t>(h)] = h;

  std::vector<at::Tensor> estimates, logits;  // [n, L, H] of each batch
  int64_t done = 0;
  const int64_t total = data.size().value_or(-1);
  data.for_each([&](const Batch& batch) {
    if (batch_size(batch) == 0) return;
    if (done == 0) check_attention(model, batch);
    ModelState state = model.embed(batch);
    const std::unique_ptr<GatePolicy::State> fresh = policy->start();
    fresh->present = model.heads();
    std::vector<at::Tensor> of_layers, z_of_layers;
    GateSet gates;
    at::Tensor early;
    const std::vector<int64_t> stops = policy->decision_layers();
    for (int64_t l = 0; l < layout.layers; ++l) {
      if (std::find(stops.begin(), stops.end(), l) != stops.end()) {
        gates = policy->decide({l, state.hidden, state.attention_mask, &model}, *fresh);
      }
      if (gate.early != nullptr && l == 0) {
        early = gate.early->logits(state.hidden, state.attention_mask);
      }
      z_of_layers.push_back(gate.early != nullptr
                                ? early.select(1, l)
                                : gate.layered->logits(l, state.hidden, state.attention_mask));
      of_layers.push_back(estimate(model, l, all, settings.weight[l], state.hidden,
                                   state.attention_mask, [](int64_t, size_t) { return true; }, {}));
      state = model.run(state, l, l + 1, gates);
    }
    estimates.push_back(at::stack(of_layers, 1));
    logits.push_back(at::stack(z_of_layers, 1));
    ++done;
    if (options.progress) options.progress(done, total);
  });
  HEADKIT_CHECK(done > 0, kFit, "data with at least one example", "none");
  const at::Tensor theta = at::cat(estimates), z = at::cat(logits);
  const at::Tensor there = model.heads().keep();
  for (int64_t l = 0; l < layout.layers; ++l) {
    const at::Tensor known = theta.select(1, l).masked_select(there[l]);
    const double median = known.numel() > 0 ? known.median().item<double>() : 0;
    if (median > 0) settings.median[l] = median;
  }
  const at::Tensor contested = (gate.fixed() == 0).logical_and(there);
  const at::Tensor distance = (z - gate.threshold()).abs().masked_select(contested);
  if (distance.numel() == 0) return std::make_shared<SecondLook>(std::move(settings));
  const auto count =
      static_cast<int64_t>(std::ceil(options.band_share * static_cast<double>(distance.numel())));
  settings.band = std::nextafter(std::get<0>(distance.sort())[count - 1].item<double>(),
                                 std::numeric_limits<double>::infinity());
  // As many of the heads in the band run as the gate itself would open.
  const at::Tensor near = ((z - gate.threshold()).abs() < settings.band).logical_and(contested);
  const at::Tensor relative =
      std::get<0>((theta / settings.median.unsqueeze(1)).masked_select(near).sort());
  const int64_t opened = (z >= gate.threshold()).masked_select(near).sum().item<int64_t>();
  // Midway between neighbours, so that rounding does not decide.
  const int64_t first = relative.numel() - opened;
  const auto at_place = [&](int64_t place) { return relative[place].item<double>(); };
  const double below = first > 0 ? at_place(first - 1) : 0;
  settings.ratio = opened > 0 ? (below + at_place(first)) / 2 : 2 * below;
  return std::make_shared<SecondLook>(std::move(settings));
}

}  // namespace headkit
