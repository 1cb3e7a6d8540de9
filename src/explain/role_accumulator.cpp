#include "headkit/explain/role_accumulator.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "headkit/core/error.h"

namespace headkit {
namespace {

// int64 [N] of a batch's [B, padded], or undefined.
at::Tensor tokens_of(const Batch& batch, const char* name, int64_t row, int64_t padded,
                     int64_t count) {
  const auto found = batch.find(name);
  if (found == batch.end() || found->second.dim() != 2 || found->second.size(1) != padded ||
      at::isFloatingType(found->second.scalar_type())) {
    return {};
  }
  return found->second[row].narrow(0, 0, count).to(at::kCPU, at::kLong).contiguous();
}

// Of an encoder-decoder the decoder's own blocks are those whose first query sees one key.
bool is_causal(const SampleAttention& attention) {
  const int64_t queries = attention.key_allowed.size(1), keys = attention.key_allowed.size(2);
  if (queries != keys || queries < 2) return false;
  return !attention.key_allowed[0].triu(1).any().item<bool>();
}

void find_tokens(RoleRows& rows) {
  const SampleAttention& attention = rows.attention;
  const Batch& batch = *attention.batch;
  const bool two_sequences = batch.count("decoder_input_ids") > 0;
  const char* own = two_sequences && (attention.cross || is_causal(attention)) ? "decoder_input_ids"
                                                                               : "input_ids";
  if (!attention.cross || two_sequences) {
    rows.query_tokens =
        tokens_of(batch, own, attention.row, attention.block_queries, rows.queries());
  }
  rows.key_tokens = attention.cross && !two_sequences
                        ? at::Tensor()
                        : tokens_of(batch, attention.cross ? "input_ids" : own, attention.row,
                                    attention.block_keys, rows.keys());
}

void find_special(const std::vector<int64_t>& ids, RoleRows& rows) {
  rows.special_keys = at::zeros({rows.keys()}, at::kBool);
  if (rows.key_tokens.defined()) {
    for (const int64_t id : ids) rows.special_keys.logical_or_(rows.key_tokens.eq(id));
  }
  const SampleAttention& attention = rows.attention;
  const at::Tensor given = tokens_of(*attention.batch, "special_tokens_mask", attention.row,
                                     attention.block_keys, rows.keys());
  if (given.defined()) rows.special_keys.logical_or_(given.ne(0));
}

// Largest weight, how many keys have it, squares and entropy, by row of [h, T, S].
void find_shape(RoleRows& rows) {
  const int64_t count = rows.heads() * rows.queries(), keys = rows.keys();
  for (at::Tensor* tensor : {&rows.largest, &rows.ties, &rows.squares, &rows.entropy}) {
    *tensor = at::empty({rows.heads(), rows.queries()}, at::kFloat);
  }
  // A weight of 0 adds 0 to the entropy whatever its logarithm is.
  const at::Tensor logarithms = rows.attention.probabilities.clamp_min(1e-30).log_();
  const float* weights = rows.attention.probabilities.const_data_ptr<float>();
  const float* logarithm = logarithms.const_data_ptr<float>();
  float* largest = rows.largest.mutable_data_ptr<float>();
  float* ties = rows.ties.mutable_data_ptr<float>();
  float* squares = rows.squares.mutable_data_ptr<float>();
  float* entropy = rows.entropy.mutable_data_ptr<float>();
  for (int64_t row = 0; row < count; ++row, weights += keys, logarithm += keys) {
    float most = 0, square = 0, equal = 0, inside = 0;
#pragma omp simd reduction(max : most) reduction(+ : square, inside)
    for (int64_t j = 0; j < keys; ++j) {
      most = weights[j] > most ? weights[j] : most;
      square += weights[j] * weights[j];
      inside -= weights[j] * logarithm[j];
    }
#pragma omp simd reduction(+ : equal)
    for (int64_t j = 0; j < keys; ++j) equal += weights[j] == most ? 1.0F : 0.0F;
    largest[row] = most;
    ties[row] = equal;
    squares[row] = square;
    entropy[row] = inside;
  }
}

}  // namespace

RoleRows::RoleRows(const SampleAttention& seen, const std::vector<int64_t>& special_tokens)
    : attention(seen) {
  find_tokens(*this);
  find_special(special_tokens, *this);
  find_shape(*this);
  all_allowed = attention.key_allowed.all().item<bool>();
  allowed_keys = attention.key_allowed.sum(-1);
  const at::Tensor places = special_keys.nonzero().flatten();
  special_mass = attention.probabilities.index_select(2, places).sum(-1);
  content_keys = allowed_keys - attention.key_allowed.index_select(2, places).sum(-1);
}

const at::Tensor& RoleRows::side_by_side() const {
  if (!side_by_side_.defined()) {
    side_by_side_ = attention.probabilities.permute({1, 2, 0}).contiguous();
  }
  return side_by_side_;
}

int64_t accumulate_roles(GatedModel& model, const DataSource& data, const RolePass& pass,
                         const RoleAccumulators& accumulators) {
  AttentionRowOptions options{.gates = pass.gates, .progress = pass.progress};
  options.output_norms = std::any_of(accumulators.begin(), accumulators.end(),
                                     [](const auto& each) { return each->needs_output_norms(); });
  int64_t sequences = 0;
  for_each_attention(model, data, options, [&](const SampleAttention& attention) {
    sequences = attention.sample + 1;
    const RoleRows rows(attention, pass.special_tokens);
    for (const auto& accumulator : accumulators) accumulator->add(rows);
  });
  return sequences;
}

RoleTable finish_roles(GatedModel& model, int64_t sequences, const RoleMeasure& measure,
                       const RoleAccumulators& accumulators) {
  RoleTable table;
  table.layout = model.layout();
  table.sequences = sequences;
  table.confidence = measure.confidence;
  table.seed = measure.seed;
  table.warnings = role_warnings();
  table.heads.assign(static_cast<size_t>(table.layout.layers),
                     std::vector<std::vector<RoleScore>>(static_cast<size_t>(table.layout.heads)));
  const RoleEnd end{table.layout, model.heads(), measure};
  for (const auto& accumulator : accumulators) accumulator->finish(end, table);
  table.rank();
  return table;
}

}  // namespace headkit
