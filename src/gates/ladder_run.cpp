#include "gates/ladder_run.h"

#include <ATen/ATen.h>

#include "gates/early_record.h"
#include "headkit/core/error.h"
#include "headkit/models/objective.h"

namespace headkit {

Ladder of_heads_there(const Ladder& ladder, const HeadMask& there) {
  std::vector<Rung> rungs = ladder.rungs();
  for (Rung& rung : rungs) rung.heads = rung.heads.intersect(there);
  return Ladder(std::move(rungs));
}

void check_signal(const char* operation, const LinearProbe& probe, const std::string& signal) {
  HEADKIT_CHECK(signal == "probe_confidence" || signal == "predicted_loss", operation,
                "a signal of probe_confidence or predicted_loss", signal);
  const bool given = signal == "probe_confidence" ? probe.has_task() : probe.predicts_loss();
  HEADKIT_CHECK(given, operation, "a probe that gives " + signal, "one that does not");
}

at::Tensor probe_confidence(const LinearProbe& probe, const std::string& signal,
                            const at::Tensor& hidden, const at::Tensor& attention_mask) {
  const ProbeSignals signals = probe.signals(hidden, attention_mask);
  return signal == "probe_confidence" ? signals.confidence : signals.log_loss.exp().neg().exp();
}

Step step_cost(const UnitsThere& there, const Rung& rung, int64_t first, int64_t last) {
  const UnitCounts counts = there.count(rung.heads.keep(), rung.blocks, first, last);
  return {static_cast<int64_t>(counts.heads), static_cast<int64_t>(counts.kv_heads),
          static_cast<int64_t>(counts.neurons), last - first};
}

void fill_costs(PolicyRun& run, const std::vector<Step>& totals, const at::Tensor& reached) {
  const auto of = [&](int64_t Step::*member) {
    std::vector<int64_t> values;
    for (const Step& total : totals) values.push_back(total.*member);
    return at::tensor(values, at::kLong).index_select(0, reached);
  };
  run.heads_run = of(&Step::heads);
  run.kv_heads_run = of(&Step::kv_heads);
  run.neurons_run = of(&Step::neurons);
  run.layers_run = of(&Step::layers);
}

bool same_compensation(const Rung& a, const Rung& b) {
  const auto same = [](const at::Tensor& one, const at::Tensor& other) {
    if (one.is_same(other)) return true;
    return one.defined() && other.defined() && one.sizes() == other.sizes() &&
           one.scalar_type() == other.scalar_type() && at::equal(one, other);
  };
  return same(a.dropped_output, b.dropped_output) && same(a.dropped_blocks, b.dropped_blocks);
}

GateSet gates_reached(const std::vector<Rung>& rungs, const at::Tensor& reached,
                      const at::Tensor& hidden) {
  std::vector<at::Tensor> heads, blocks;
  at::Tensor some_blocks;
  bool same = true;
  for (const Rung& rung : rungs) {
    heads.push_back(rung.heads.keep());
    if (rung.blocks.defined()) some_blocks = rung.blocks;
    same = same && same_compensation(rung, rungs.front());
  }
  GateSet gates;
  gates.heads = at::stack(heads).index_select(0, reached).to(gate_options(hidden));
  if (some_blocks.defined()) {
    for (const Rung& rung : rungs) {
      blocks.push_back(rung.blocks.defined() ? rung.blocks : at::ones_like(some_blocks));
    }
    gates.blocks = at::stack(blocks).index_select(0, reached).to(gate_options(hidden));
  }
  if (same) {
    gates.dropped_output = fitting_dropped_output(rungs.front().dropped_output, hidden);
    gates.dropped_blocks = fitting_dropped_output(rungs.front().dropped_blocks, hidden);
  }
  return gates;
}

at::Tensor labels_of(const at::Tensor& logits) {
  return logits.size(1) == 1 ? (logits.select(1, 0) > 0).to(at::kLong) : logits.argmax(1);
}

void check_logits(const char* operation, const at::Tensor& logits) {
  HEADKIT_CHECK(logits.dim() == 2 && logits.size(1) >= 1, operation,
                "a model whose output is logits [batch, classes]", "output of shape ",
                logits.sizes());
}

TraceBuilder::TraceBuilder(const UnitsThere& there, std::vector<Step> totals)
    : there_(there), totals_(std::move(totals)) {}

void TraceBuilder::add(const Batch& batch, const at::Tensor& confidence,
                       const std::vector<at::Tensor>& outputs, const at::Tensor& dense_output,
                       const std::vector<int64_t>& tokens) {
  check_logits("ladder", dense_output);
  // A single logit is the second of two whose first is 0.
  const auto wide = [](const at::Tensor& logits) {
    const at::Tensor values = logits.detach().to(at::kCPU, at::kDouble);
    return values.size(1) > 1 ? values : at::cat({at::zeros_like(values), values}, 1);
  };
  const at::Tensor dense = wide(dense_output);
  const auto found = batch.find("labels");
  const bool labelled =
      found != batch.end() && found->second.dim() == 1 && found->second.scalar_type() == at::kLong;
  labelled_ = labelled_ && labelled;
  std::vector<at::Tensor> changed, kl, loss;
  for (const at::Tensor& output : outputs) {
    const at::Tensor logits = wide(output);
    changed.push_back((labels_of(logits) != labels_of(dense)).to(at::kDouble));
    kl.push_back(kl_to_dense()->loss(logits, batch, dense));
    if (labelled_) loss.push_back(cross_entropy()->loss(logits, batch, dense));
  }
  confidence_.push_back(confidence);
  changed_.push_back(at::stack(changed, 1));
  kl_.push_back(at::stack(kl, 1).to(at::kDouble));
  if (labelled_) {
    loss_.push_back(at::stack(loss, 1).to(at::kDouble));
    dense_loss_.push_back(cross_entropy()->loss(dense, batch, dense));
  }
  std::vector<double> flops, dense_flops;
  const HeadLayout& layout = there_.layout();
  const UnitCounts all{static_cast<double>(layout.total_heads()),
                       static_cast<double>(layout.layers * layout.key_value_heads()),
                       static_cast<double>(there_.original_neurons())};
  for (const int64_t count : tokens) {
    for (const Step& total : totals_) {
      flops.push_back(
          unit_flops(layout,
                     {static_cast<double>(total.heads), static_cast<double>(total.kv_heads),
                      static_cast<double>(total.neurons)},
                     static_cast<double>(count)));
    }
    dense_flops.push_back(unit_flops(layout, all, static_cast<double>(count)));
  }
  flops_.push_back(
      at::tensor(flops, at::kDouble).reshape({-1, static_cast<int64_t>(totals_.size())}));
  dense_.push_back(at::tensor(dense_flops, at::kDouble));
}

LadderTrace TraceBuilder::finish(const char* operation) {
  HEADKIT_CHECK(!confidence_.empty(), operation, "calibration examples", "none");
  LadderTrace trace;
  trace.confidence = at::cat(confidence_);
  trace.changed = at::cat(changed_);
  trace.kl = at::cat(kl_);
  if (labelled_) {
    trace.loss = at::cat(loss_);
    trace.dense_loss = at::cat(dense_loss_);
  }
  trace.flops = at::cat(flops_);
  trace.dense_flops = at::cat(dense_);
  std::vector<double> heads;
  for (const Step& total : totals_) heads.push_back(static_cast<double>(total.heads));
  trace.heads = at::tensor(heads, at::kDouble);
  return trace;
}

void record_rung(DecisionRecord& record, const Rung& low, const Rung& high, const Rung& taken,
                 const HeadMask& there) {
  for (int64_t l = 0; l < taken.heads.layers(); ++l) {
    for (int64_t h = 0; h < taken.heads.heads(); ++h) {
      const HeadId id{l, h};
      const bool runs = taken.heads.contains(id) && there.contains(id);
      HeadDecision decision;
      decision.layer = l;
      decision.head = h;
      decision.reason = "mask";
      decision.gate = runs ? 1 : 0;
      if (!there.contains(id) || !high.heads.contains(id)) {
        decision.state = "pruned";
        if (high.heads.contains(id)) decision.reason = "removed";
      } else if (low.heads.contains(id)) {
        decision.state = "always_on";
      } else {
        decision.state = runs ? "on" : "off";
        decision.reason = "confidence";
      }
      record.heads.push_back(std::move(decision));
    }
  }
  if (!low.blocks.defined() && !high.blocks.defined()) return;
  const at::Tensor open = taken.blocks.defined()
                              ? taken.blocks
                              : at::ones_like(low.blocks.defined() ? low.blocks : high.blocks);
  record.block_count = open.size(1);
  for (int64_t l = 0; l < open.size(0); ++l) {
    const at::Tensor index = open.select(0, l).nonzero().flatten();
    record.open_blocks.emplace_back(index.const_data_ptr<int64_t>(),
                                    index.const_data_ptr<int64_t>() + index.numel());
  }
}

}  // namespace headkit
