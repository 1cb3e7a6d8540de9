#include "headkit/pruners/make_ladder.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <set>

#include "gates/units_there.h"
#include "headkit/core/error.h"
#include "headkit/pruners/mean_activation.h"
#include "headkit/pruners/mean_output.h"
#include "headkit/pruners/top_fraction.h"

namespace headkit {
namespace {

constexpr auto kOperation = "make_ladder";

void check_shares(const std::vector<double>& shares, const char* name) {
  for (size_t i = 0; i < shares.size(); ++i) {
    HEADKIT_CHECK(shares[i] >= 0 && shares[i] <= 1 && (i == 0 || shares[i - 1] <= shares[i]),
                  kOperation, std::string("ascending ") + name + " in [0, 1]",
                  at::ArrayRef<double>(shares));
  }
}

std::vector<HeadId> heads_to_go(const LadderPlan& plan, const HeadMask& there) {
  HEADKIT_CHECK(plan.scores.values.defined() != !plan.order.empty(), kOperation,
                "scores or an order of heads", plan.order.empty() ? "neither" : "both");
  if (plan.scores.values.defined()) {
    return removal_order(plan.scores, plan.min_heads_per_layer, there);
  }
  HEADKIT_CHECK(plan.min_heads_per_layer == 0, kOperation,
                "no min_heads_per_layer beside an order of heads", plan.min_heads_per_layer);
  std::set<std::pair<int64_t, int64_t>> seen;
  std::vector<HeadId> going;
  for (const HeadId& id : plan.order) {
    HEADKIT_CHECK(id.layer >= 0 && id.layer < there.layers() && id.head >= 0 &&
                      id.head < there.heads() && seen.insert({id.layer, id.head}).second,
                  kOperation, "each head of the model at most once in the order", "layer ",
                  id.layer, " head ", id.head);
    if (there.contains(id)) going.push_back(id);
  }
  return going;
}

struct Block {
  int64_t layer, block;
  double score;
};

// Blocks in the order in which they go; the best `floor` of each layer are not among them.
std::vector<Block> blocks_to_go(const LadderPlan& plan, const UnitsThere& there,
                                const at::Tensor& neurons) {
  const at::Tensor& scores = plan.neuron_scores;
  HEADKIT_CHECK(scores.defined() && scores.sizes() == neurons.sizes(), kOperation,
                c10::str("neuron_scores of shape ", neurons.sizes(), " beside block_shares"),
                "shape ", scores.defined() ? scores.sizes() : at::IntArrayRef{});
  at::Tensor values = scores.detach().to(at::kCPU, at::kDouble);
  HEADKIT_CHECK(values.isfinite().all().item<bool>(), kOperation, "finite neuron_scores",
                "NaN or infinity");
  HEADKIT_CHECK(plan.min_blocks_per_layer >= 0, kOperation, "min_blocks_per_layer of at least 0",
                plan.min_blocks_per_layer);
  values = values.masked_fill(neurons.logical_not(), 0);
  const at::Tensor& counts = there.neurons();
  const int64_t blocks = counts.size(1);
  values = at::constant_pad_nd(values, {0, blocks * kNeuronBlock - values.size(1)})
               .unflatten(1, {blocks, kNeuronBlock})
               .sum(2)
               .contiguous();
  const auto goes_first = [](const Block& a, const Block& b) {
    if (a.score != b.score) return a.score < b.score;
    return a.layer != b.layer ? a.layer > b.layer : a.block > b.block;
  };
  std::vector<Block> going;
  for (int64_t l = 0; l < counts.size(0); ++l) {
    std::vector<Block> own;
    for (int64_t n = 0; n < blocks; ++n) {
      if (counts[l][n].item<int64_t>() > 0) own.push_back({l, n, values[l][n].item<double>()});
    }
    std::sort(own.begin(), own.end(), goes_first);
    const auto floor = std::min<size_t>(own.size(), plan.min_blocks_per_layer);
    going.insert(going.end(), own.begin(), own.end() - static_cast<int64_t>(floor));
  }
  std::sort(going.begin(), going.end(), goes_first);
  return going;
}

// How many of `going` go where a share of `total` stays.
int64_t gone(double share, int64_t total, size_t going, const char* what) {
  const int64_t count = total - kept_heads(share, total);
  HEADKIT_CHECK(count <= static_cast<int64_t>(going), kOperation,
                c10::str("a share of ", what, " that leaves those which stay on every rung, ",
                         total - static_cast<int64_t>(going), " of ", total),
                share);
  return count;
}

void compensate(GatedModel& model, const LadderPlan& plan, Rung& rung) {
  const auto measure = [&] {
    MeanOutputOptions options;
    options.decide = [&](const ModelState& state) { return rung.gates(state.hidden); };
    const at::Tensor heads = mean_head_outputs(model, *plan.data, options);
    if (rung.blocks.defined()) {
      rung.dropped_blocks = mean_block_outputs(model, *plan.data, options);
    }
    rung.dropped_output = heads;
  };
  measure();
  measure();
  // What an open unit would add is never used.
  rung.dropped_output.masked_fill_(rung.heads.keep().unsqueeze(2), 0);
  if (rung.blocks.defined()) rung.dropped_blocks.masked_fill_(rung.blocks.unsqueeze(2), 0);
}

}  // namespace

Ladder make_ladder(GatedModel& model, const LadderPlan& plan) {
  const UnitsThere there(model);
  const HeadLayout& layout = there.layout();
  const HeadMask& heads = there.heads();
  HEADKIT_CHECK(!plan.head_shares.empty(), kOperation, "a share of heads for at least one rung",
                "none");
  check_shares(plan.head_shares, "head_shares");
  check_shares(plan.block_shares, "block_shares");
  const bool blocks = !plan.block_shares.empty();
  HEADKIT_CHECK(!blocks || plan.block_shares.size() == plan.head_shares.size(), kOperation,
                c10::str(plan.head_shares.size(), " block_shares, as many as head_shares"),
                plan.block_shares.size());
  HEADKIT_CHECK(blocks || !plan.neuron_scores.defined(), kOperation,
                "block_shares beside neuron_scores", "none");
  HEADKIT_CHECK(plan.common_layers >= 0 && plan.common_layers < layout.layers, kOperation,
                c10::str("common_layers from 0 to ", layout.layers - 1), plan.common_layers);
  const std::vector<HeadId> going = heads_to_go(plan, heads);
  std::vector<Block> going_blocks;
  int64_t total_blocks = 0;
  if (blocks) {
    HEADKIT_CHECK(model.gated_units().neurons, kOperation,
                  "a model that shows its feed-forward blocks, for block_shares",
                  "one that does not");
    HEADKIT_CHECK(there.neurons().size(0) == layout.layers, kOperation,
                  "a feed-forward block in each layer, for block_shares", there.neurons().size(0),
                  " in ", layout.layers, " layers");
    going_blocks = blocks_to_go(plan, there, model.neurons().to(at::kCPU));
    total_blocks = (there.neurons() > 0).sum().item<int64_t>();
  }

  std::vector<Rung> rungs;
  const auto mode = model.evaluating();
  for (size_t r = 0; r < plan.head_shares.size(); ++r) {
    at::Tensor keep = heads.keep().clone();
    const int64_t count = gone(plan.head_shares[r], heads.count(), going.size(), "heads");
    for (int64_t i = 0; i < count; ++i) keep[going[i].layer][going[i].head] = false;
    Rung rung{HeadMask(keep)};
    if (blocks) {
      rung.blocks = there.neurons() > 0;
      const int64_t closed =
          gone(plan.block_shares[r], total_blocks, going_blocks.size(), "blocks");
      for (int64_t i = 0; i < closed; ++i) {
        rung.blocks[going_blocks[i].layer][going_blocks[i].block] = false;
      }
    }
    if (r > 0 && plan.common_layers > 0) {
      const Rung& low = rungs.front();
      keep.slice(0, 0, plan.common_layers).copy_(low.heads.keep().slice(0, 0, plan.common_layers));
      rung.heads = HeadMask(keep);
      if (blocks) {
        rung.blocks.slice(0, 0, plan.common_layers)
            .copy_(low.blocks.slice(0, 0, plan.common_layers));
      }
    }
    if (plan.data != nullptr) compensate(model, plan, rung);
    rungs.push_back(std::move(rung));
    if (plan.progress) {
      plan.progress(static_cast<int64_t>(r) + 1, static_cast<int64_t>(plan.head_shares.size()));
    }
  }
  Rung top{heads};
  if (blocks) top.blocks = there.neurons() > 0;
  rungs.push_back(std::move(top));
  return Ladder(std::move(rungs));
}

}  // namespace headkit
