#include "headkit/explain/roles.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>
#include <random>

#include "explain/text_roles.h"
#include "headkit/core/error.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

constexpr char kName[] = "roles";
constexpr int64_t kShortest = 20, kLongest = 40;  // of r in the random sequences r r
constexpr int64_t kLeastLongest = 4;              // a model that takes less is not assessed
constexpr int64_t kSequencesAtOnce = 16;

void check(const RoleOptions& options) {
  const RoleMeasure& measure = options.measure;
  HEADKIT_CHECK(measure.draws >= 0 && measure.bootstrap >= 0, kName,
                "numbers of draws and resamples >= 0", measure.draws, " and ", measure.bootstrap);
  HEADKIT_CHECK(measure.confidence > 0 && measure.confidence < 1, kName,
                "a confidence level in (0, 1)", measure.confidence);
  HEADKIT_CHECK(options.random_sequences >= 0, kName, "a number of random sequences >= 0",
                options.random_sequences);
}

TokenCounts count_tokens(const DataSource& data) {
  TokenCounts counts;
  data.for_each([&](const Batch& batch) {
    const auto found = batch.find("input_ids");
    if (found == batch.end() || found->second.dim() != 2 ||
        at::isFloatingType(found->second.scalar_type())) {
      return;
    }
    const at::Tensor ids = found->second.to(at::kCPU, at::kLong).contiguous();
    at::Tensor counted = at::ones_like(ids, at::kBool);
    const auto mask = batch.find("attention_mask");
    if (mask != batch.end() && mask->second.sizes() == ids.sizes()) {
      counted = mask->second.to(at::kCPU).ne(0).contiguous();
    }
    const int64_t* id = ids.const_data_ptr<int64_t>();
    const bool* is_token = counted.const_data_ptr<bool>();
    for (int64_t i = 0; i < ids.numel(); ++i) {
      if (is_token[i]) ++counts[id[i]];
    }
  });
  return counts;
}

RoleAccumulators data_roles(const HeadLayout& layout, const RoleOptions& options,
                            const TokenCounts& counts) {
  RoleAccumulators all;
  all.push_back(offset_roles(layout));
  for (const Delimiter& each : options.delimiters) {
    all.push_back(delimiter_role(layout, each.name, each.ids));
  }
  if (options.delimiters.empty()) all.push_back(delimiter_role(layout, "", {}));
  all.push_back(first_token_sink(layout));
  all.push_back(row_shape_roles(layout));
  all.push_back(local_role(layout));
  all.push_back(inactive_role(layout, options.inactive_threshold));
  all.push_back(duplicate_token_role(layout, options.measure));
  all.push_back(natural_mass_role(layout, options.measure));
  all.push_back(natural_any_prior_role(layout, options.measure));
  all.push_back(rare_token_role(layout, options.measure, counts));
  return all;
}

struct RandomSequences {
  std::vector<Batch> batches;
  std::vector<int64_t> lengths;  // of r, by sequence
};

// Sequences begin r r, of tokens that occur in the data, each once in r where there are enough.
RandomSequences random_sequences(const RoleOptions& options, const TokenCounts& counts) {
  std::vector<int64_t> tokens;
  for (const auto& [id, count] : counts) {
    const auto& special = options.special_tokens;
    if (std::find(special.begin(), special.end(), id) == special.end()) tokens.push_back(id);
  }
  std::sort(tokens.begin(), tokens.end());
  RandomSequences made;
  const int64_t begin = options.begin_token >= 0 ? 1 : 0;
  const int64_t longest_r =
      options.max_tokens > 0 ? std::min(kLongest, (options.max_tokens - begin) / 2) : kLongest;
  const int64_t shortest_r = std::min(kShortest, longest_r / 2);
  if (tokens.size() < 2 || longest_r < kLeastLongest) return made;
  std::mt19937_64 random(options.measure.seed);
  const auto draw = [&](size_t below) {
    return static_cast<size_t>(draw_below(random, static_cast<int64_t>(below)));
  };
  std::vector<std::vector<int64_t>> sequences;
  for (int64_t i = 0; i < options.random_sequences; ++i) {
    const int64_t length = shortest_r + static_cast<int64_t>(draw(longest_r - shortest_r + 1));
    std::vector<int64_t> r;
    for (int64_t j = 0; j < length; ++j) {
      const size_t taken = static_cast<size_t>(j) % tokens.size();
      std::swap(tokens[taken], tokens[taken + draw(tokens.size() - taken)]);
      r.push_back(tokens[taken]);
    }
    std::vector<int64_t>& whole = sequences.emplace_back();
    if (begin > 0) whole.push_back(options.begin_token);
    for (const int copy : {0, 1}) {
      (void)copy;
      whole.insert(whole.end(), r.begin(), r.end());
    }
    made.lengths.push_back(length);
  }
  for (size_t first = 0; first < sequences.size(); first += kSequencesAtOnce) {
    const size_t last = std::min(sequences.size(), first + kSequencesAtOnce);
    size_t longest = 0;
    for (size_t i = first; i < last; ++i) longest = std::max(longest, sequences[i].size());
    const auto rows = static_cast<int64_t>(last - first);
    const at::Tensor ids =
        at::full({rows, static_cast<int64_t>(longest)}, tokens.front(), at::kLong);
    const at::Tensor mask = at::zeros_like(ids);
    for (int64_t i = 0; i < rows; ++i) {
      const std::vector<int64_t>& sequence = sequences[first + static_cast<size_t>(i)];
      const auto length = static_cast<int64_t>(sequence.size());
      ids[i].narrow(0, 0, length).copy_(at::tensor(sequence, at::kLong));
      mask[i].narrow(0, 0, length).fill_(1);
    }
    made.batches.push_back({{"input_ids", ids}, {"attention_mask", mask}});
  }
  return made;
}

// Whether the model reads nothing but tokens.
bool reads_tokens_alone(const DataSource& data) {
  bool tokens = false, others = false;
  data.for_each([&](const Batch& batch) {
    tokens = tokens || batch.count("input_ids") > 0;
    for (const char* name :
         {"decoder_input_ids", "pixel_values", "input_features", "input_values"}) {
      others = others || batch.count(name) > 0;
    }
  });
  return tokens && !others;
}

RolePass pass_of(const RoleOptions& options) {
  return {.gates = options.gates,
          .special_tokens = options.special_tokens,
          .progress = options.progress};
}

void add_random_stripe(GatedModel& model, const DataSource& data, const RoleOptions& options,
                       const TokenCounts& counts, RoleAccumulators& all) {
  RandomSequences made;
  if (options.random_sequences > 0 && reads_tokens_alone(data)) {
    made = random_sequences(options, counts);
  }
  RoleAccumulators own;
  own.push_back(random_stripe_role(model.layout(), options.measure, made.lengths,
                                   options.begin_token >= 0 ? 1 : 0));
  RolePass pass = pass_of(options);
  pass.progress = {};
  if (!made.batches.empty()) accumulate_roles(model, BatchList(made.batches), pass, own);
  all.push_back(std::move(own.front()));
}

std::vector<std::string> notes_of(const RoleOptions& options) {
  std::vector<std::string> notes;
  if (options.special_tokens.empty()) {
    notes.emplace_back(
        "No special tokens are known but those that the data mark: none was left out beside them.");
  }
  return notes;
}

// On the side of threshold and best null where the data set's verdict is.
std::optional<bool> agrees(const RoleScore& score, const RoleScore* verdict) {
  if (verdict == nullptr || !verdict->assessed || !score.assessed || !verdict->threshold) {
    return std::nullopt;
  }
  const RoleInfo& info = role_info(score.role);
  const double sign = info.low ? -1 : 1;
  bool fits = sign * score.score >= sign * *verdict->threshold;
  const std::optional<double> null = verdict->best_null();
  if (info.beats_null && null) fits = fits && sign * score.score > sign * *null;
  return fits == verdict->assigned;
}

}  // namespace

RoleTable roles(GatedModel& model, const DataSource& data, const RoleOptions& options) {
  check(options);
  const TokenCounts counts = count_tokens(data);
  RoleAccumulators all = data_roles(model.layout(), options, counts);
  const int64_t sequences = accumulate_roles(model, data, pass_of(options), all);
  HEADKIT_CHECK(sequences > 0, kName, "data with at least one example", "none");
  add_random_stripe(model, data, options, counts, all);
  RoleTable table = finish_roles(model, sequences, options.measure, all);
  add_copying(model, options.measure, options.embedding, options.unembedding, table);
  table.rank();
  for (std::string& note : notes_of(options)) table.warnings.push_back(std::move(note));
  return table;
}

std::vector<RoleTable> input_roles(GatedModel& model, const DataSource& data,
                                   const RoleTable& dataset, const RoleOptions& options) {
  check(options);
  HEADKIT_CHECK(dataset.of == "dataset" && dataset.layout == model.layout(), kName,
                "the roles of a data set for the same model", "roles of ",
                dataset.of == "dataset" ? "another model" : "an input");
  const TokenCounts counts = count_tokens(data);
  RoleMeasure measure = options.measure;
  measure.draws = 0;
  measure.bootstrap = 0;
  RoleOptions of_one = options;
  of_one.measure = measure;
  std::vector<RoleTable> tables;
  RoleAccumulators all;
  int64_t sample = -1;
  const auto finish = [&] {
    if (sample < 0) return;
    RoleTable table = finish_roles(model, 1, measure, all);
    table.of = "input";
    for (auto& layer : table.heads) {
      for (auto& scores : layer) {
        for (RoleScore& score : scores) {
          const int64_t l = &layer - table.heads.data(), h = &scores - layer.data();
          score.agrees = agrees(score, dataset.find(l, h, score.role, score.variant));
          score.assigned = false;
          if (score.assessed) score.reason = "one input is too small a sample for a label";
        }
      }
    }
    for (std::string& note : notes_of(options)) table.warnings.push_back(std::move(note));
    tables.push_back(std::move(table));
  };
  // One pass: a visitor that starts anew with every sample.
  struct Visitor final : RoleAccumulator {
    std::function<void(const RoleRows&)> visit;
    void add(const RoleRows& rows) override { visit(rows); }
    void merge(const RoleAccumulator&) override {}
    void finish(const RoleEnd&, RoleTable&) const override {}
    bool needs_output_norms() const override { return true; }
  };
  auto visitor = std::make_unique<Visitor>();
  visitor->visit = [&](const RoleRows& rows) {
    if (rows.attention.sample != sample) {
      finish();
      sample = rows.attention.sample;
      all = data_roles(model.layout(), of_one, counts);
    }
    for (const RolePointer& each : all) each->add(rows);
  };
  RoleAccumulators visitors;
  visitors.push_back(std::move(visitor));
  accumulate_roles(model, data, pass_of(options), visitors);
  finish();
  HEADKIT_CHECK(!tables.empty(), kName, "data with at least one example", "none");
  return tables;
}

}  // namespace headkit
