#include "explain/text_roles.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>

#include "headkit/explain/role_sums.h"
#include "headkit/explain/roles.h"
#include "planted_attention.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

using testing::planted_scale;
using testing::PlantedAttention;
using testing::PlantedHead;
using testing::PlantedSizes;

constexpr int64_t kBegin = 0, kEnd = 1, kComma = 2;
const PlantedSizes kSizes{.vocabulary = 16, .positions = 96, .written = 16};

// Sequences [begin] words [end] of 14 to 26 tokens; low words are frequent.
std::vector<Batch> corpus(int64_t sequences, uint64_t seed, int64_t per_batch = 8) {
  std::mt19937_64 random(seed);
  std::vector<Batch> batches;
  for (int64_t first = 0; first < sequences; first += per_batch) {
    const int64_t count = std::min(per_batch, sequences - first);
    const at::Tensor ids = at::zeros({count, 26}, at::kLong), mask = at::zeros_like(ids);
    for (int64_t b = 0; b < count; ++b) {
      const int64_t length = 14 + static_cast<int64_t>(random() % 13);
      for (int64_t i = 1; i + 1 < length; ++i) {
        const double u = static_cast<double>(random() % 100000) / 100000;
        ids[b][i] = 2 + static_cast<int64_t>(u * u * (kSizes.vocabulary - 2));
      }
      ids[b][length - 1] = kEnd;
      mask[b].narrow(0, 0, length).fill_(1);
    }
    batches.push_back({{"input_ids", ids}, {"attention_mask", mask}});
  }
  return batches;
}

RoleOptions options_of() {
  RoleOptions options;
  options.special_tokens = {kBegin, kEnd};
  options.delimiters = {{"end", {kEnd}}, {"comma", {kComma}}};
  options.begin_token = kBegin;
  options.measure.bootstrap = 200;
  return options;
}

std::vector<std::string> label_names(const RoleTable& table, int64_t layer, int64_t head) {
  std::vector<std::string> names;
  for (const RoleScore& score : table.labels(layer, head)) {
    names.push_back(score.role + (score.variant.empty() ? "" : "[" + score.variant + "]"));
  }
  std::sort(names.begin(), names.end());
  return names;
}

using Names = std::vector<std::string>;

// Looks at the token of the sequence that is rarest in the data.
PlantedHead rarest_head(const std::vector<Batch>& data, double scale) {
  std::vector<int64_t> counts(static_cast<size_t>(kSizes.vocabulary));
  for (const Batch& batch : data) {
    const at::Tensor ids = batch.at("input_ids").masked_select(batch.at("attention_mask").ne(0));
    for (int64_t i = 0; i < ids.size(0); ++i) ++counts[ids[i].item<int64_t>()];
  }
  PlantedHead head(kSizes);
  for (int64_t token = 2; token < kSizes.vocabulary; ++token) {
    int64_t more = 0;
    for (int64_t other = 2; other < kSizes.vocabulary; ++other) {
      more += counts[other] > counts[token] || (counts[other] == counts[token] && other < token);
    }
    head.preferring(token, scale * static_cast<double>(more + 1));
  }
  return head;
}

TEST(TextRolesTest, EveryDetectorFindsItsHeadOfATwoWayModel) {
  const double scale = planted_scale(kSizes.positions);
  const std::vector<Batch> data = corpus(100, 1);
  const std::vector<PlantedHead> heads{
      testing::planted_offset(kSizes, -1, scale),
      testing::planted_offset(kSizes, 1, scale),
      testing::planted_offset(kSizes, 0, scale),
      testing::planted_offset(kSizes, -3, scale),
      PlantedHead(kSizes).preferring(kEnd, scale),
      PlantedHead(kSizes).preferring(kSizes.position(), scale),
      PlantedHead(kSizes),
      rarest_head(data, scale),
      testing::planted_noise(kSizes, 0.5, 4),
  };
  PlantedAttention model(kSizes, {heads});
  const RoleTable table = roles(model, BatchList(data), options_of());
  EXPECT_EQ(label_names(table, 0, 0), (Names{"confident", "positional[-1]", "previous_token"}));
  EXPECT_EQ(label_names(table, 0, 1), (Names{"confident", "next_token", "positional[+1]"}));
  EXPECT_EQ(label_names(table, 0, 2), (Names{"confident", "self"}));
  // 3 of about 20 rows have no such key and look at all alike.
  EXPECT_EQ(label_names(table, 0, 3), (Names{"confident", "positional[-3]"}));
  EXPECT_EQ(label_names(table, 0, 4), (Names{"delimiter[end]"}))
      << "the end is no confident choice";
  EXPECT_EQ(label_names(table, 0, 5), (Names{"confident", "first_token_sink"}));
  EXPECT_EQ(label_names(table, 0, 6), (Names{"broad"}));
  EXPECT_EQ(label_names(table, 0, 7), (Names{"confident", "rare_token"}));
  EXPECT_EQ(label_names(table, 0, 8), (Names{}));
  EXPECT_DOUBLE_EQ(table.find(0, 0, "positional", "-1")->score, 1);
  EXPECT_GT(table.find(0, 0, "previous_token")->score, 0.99);
  EXPECT_GT(table.find(0, 5, "first_token_sink")->score, 0.99);
  EXPECT_NEAR(table.find(0, 6, "broad")->score, 1, 1e-6);
  EXPECT_EQ(table.heads[0][3].front().role, "positional");
}

TEST(TextRolesTest, CopiesAndInductionAreFoundInACausalModel) {
  const double scale = planted_scale(kSizes.positions);
  PlantedHead writer = testing::planted_offset(kSizes, -1, scale);
  writer.writing(kSizes.token(), kSizes.room(), kSizes.vocabulary);
  const std::vector<std::vector<PlantedHead>> layers{
      {writer, testing::planted_duplicate(kSizes, scale)},
      {testing::planted_induction(kSizes, kSizes.room(), scale), PlantedHead(kSizes)}};
  PlantedAttention model(kSizes, layers, /*causal=*/true);
  const RoleTable table = roles(model, BatchList(corpus(100, 2)), options_of());
  EXPECT_NE(table.find(0, 1, "duplicate_token"), nullptr);
  const Names duplicate = label_names(table, 0, 1), induction = label_names(table, 1, 0);
  EXPECT_TRUE(std::count(duplicate.begin(), duplicate.end(), "duplicate_token"));
  EXPECT_FALSE(std::count(duplicate.begin(), duplicate.end(), "random_stripe"));
  EXPECT_TRUE(std::count(induction.begin(), induction.end(), "random_stripe"));
  EXPECT_FALSE(std::count(induction.begin(), induction.end(), "duplicate_token"));
  EXPECT_GT(table.find(0, 1, "duplicate_token")->score, 0.98);
  EXPECT_GT(table.find(1, 0, "natural_any_prior")->score, 0.9);
  EXPECT_FALSE(table.find(1, 0, "natural_mass")->assigned) << "it has no threshold";
  EXPECT_EQ(label_names(table, 0, 0), (Names{"confident", "positional[-1]", "previous_token"}));
  EXPECT_EQ(label_names(table, 1, 1), (Names{"broad"}));
  const RoleScore* next = table.find(0, 0, "next_token");
  EXPECT_FALSE(next->assessed);
  EXPECT_FALSE(next->reason.empty());
  // No fixed offset passes on random sequences: r has another length each time.
  for (const RoleNull& null : table.find(1, 0, "random_stripe")->nulls) {
    EXPECT_LT(null.value, 0.3) << null.name;
  }
}

// All scores of one head by plain loops in float64, from the attention itself.
struct Plain {
  std::map<std::string, double> sum, rows;
  void add(const std::string& role, double value) {
    sum[role] += value;
    rows[role] += 1;
  }
  double score(const std::string& role) const { return sum.at(role) / rows.at(role); }
};

void add_plain(const at::Tensor& a, const std::vector<int64_t>& ids, bool causal, Plain& plain) {
  const auto n = static_cast<int64_t>(ids.size());
  const auto w = [&](int64_t i, int64_t j) { return a[i][j].item<double>(); };
  const auto special = [&](int64_t j) { return ids[j] == kBegin || ids[j] == kEnd; };
  for (int64_t i = 0; i < n; ++i) {
    const int64_t m = causal ? i + 1 : n;
    double entropy = 0, largest = 0, content = 0, distance = 0;
    for (int64_t j = 0; j < m; ++j) {
      if (w(i, j) > 0) entropy -= w(i, j) * std::log(w(i, j));
      if (j + 1 < n) largest = std::max(largest, w(i, j));
      if (!special(j)) content += w(i, j);
      if (!special(j)) distance += w(i, j) * std::abs(static_cast<double>(i - j));
    }
    if (i > 0) plain.add("previous_token", w(i, i - 1));
    if (i > 0) plain.add("first_token_sink", w(i, 0));
    if (m > 1) plain.add("broad", entropy / std::log(m));
    plain.add("self", w(i, i));
    plain.add("confident", largest);
    if (content >= kLeastMass) plain.add("local", distance / content / static_cast<double>(n));
    if (m == n) plain.add("delimiter", w(i, n - 1));
    if (special(i)) continue;
    double copies = 0, after_any = 0;
    int64_t latest = -1, found = 0, found_any = 0;
    for (int64_t j = 0; j < i; ++j) {
      if (ids[j] != ids[i]) continue;
      ++found;
      copies += w(i, j);
      latest = j;
      if (!special(j + 1)) {
        ++found_any;
        after_any += w(i, j + 1);
      }
    }
    if (found > 0 && content - w(i, i) >= kLeastMass)
      plain.add("duplicate_token", copies / (content - w(i, i)));
    if (content < kLeastMass) continue;
    if (found_any > 0) plain.add("natural_any_prior", after_any / content);
    if (latest >= 0 && !special(latest + 1)) plain.add("natural_mass", w(i, latest + 1) / content);
  }
}

TEST(TextRolesTest, ScoresAreThoseOfPlainLoops) {
  for (const bool causal : {false, true}) {
    PlantedAttention model(kSizes, {{testing::planted_noise(kSizes, 0.6, 7)}}, causal);
    const std::vector<Batch> data = corpus(12, 3);
    Plain plain;
    const BatchList source(data);
    for_each_attention(model, source, {}, [&](const SampleAttention& rows) {
      const at::Tensor ids = rows.batch->at("input_ids")[rows.row];
      std::vector<int64_t> tokens;
      for (int64_t i = 0; i < rows.probabilities.size(1); ++i) {
        tokens.push_back(ids[i].item<int64_t>());
      }
      add_plain(rows.probabilities[0].to(at::kDouble), tokens, causal, plain);
    });
    const RoleTable table = roles(model, source, options_of());
    for (const auto& [role, sum] : plain.sum) {
      const RoleScore* score = table.find(0, 0, role, role == "delimiter" ? "end" : "");
      ASSERT_NE(score, nullptr) << role;
      EXPECT_NEAR(score->score, plain.score(role), 1e-5) << role << " causal " << causal;
      EXPECT_EQ(score->rows, std::lround(plain.rows.at(role))) << role << " causal " << causal;
    }
  }
}

TEST(TextRolesTest, MassOnASpecialTokenDoesNotChangeRenormalisedScores) {
  const std::vector<Batch> data = corpus(12, 4);
  const auto table_of = [&](double bonus) {
    PlantedHead head = testing::planted_noise(kSizes, 0.2, 9);
    head.q.slice(0, head.q.size(0) - 1).zero_();
    head.k.slice(0, head.k.size(0) - 1).zero_();
    head.preferring(kBegin, bonus);
    PlantedAttention model(kSizes, {{head}});
    return roles(model, BatchList(data), options_of());
  };
  const RoleTable plain = table_of(0);
  const double before = plain.find(0, 0, "local")->excluded_mass;
  for (const double bonus : {1.0, 3.0, 6.0}) {
    const RoleTable sunk = table_of(bonus);
    EXPECT_GT(sunk.find(0, 0, "local")->excluded_mass, before + 0.05);
    for (const char* role : {"local", "duplicate_token", "natural_mass", "rare_token"}) {
      EXPECT_NEAR(sunk.find(0, 0, role)->score, plain.find(0, 0, role)->score, 2e-5) << role;
    }
  }
  const RoleTable drained = table_of(40);
  EXPECT_FALSE(drained.find(0, 0, "local")->assessed);
  EXPECT_GT(drained.find(0, 0, "local")->dropped_rows, 0);
  EXPECT_TRUE(drained.find(0, 0, "previous_token")->assessed) << "raw rows are not dropped";
}

TEST(TextRolesTest, TiesShareTheHit) {
  PlantedAttention model(kSizes, {{PlantedHead(kSizes)}});
  const RoleTable table = roles(model, BatchList(corpus(6, 5)), options_of());
  const RoleScore* score = table.find(0, 0, "positional", "+2");
  EXPECT_NEAR(score->score, score->nulls.front().value, 1e-9);
  EXPECT_EQ(score->nulls.front().name, "uniform");
  const RoleScore* rare = table.find(0, 0, "rare_token");
  EXPECT_NEAR(rare->score, rare->nulls.front().value, 1e-9);
}

TEST(TextRolesTest, BatchesPaddingAndOrderDoNotShow) {
  PlantedAttention model(kSizes, {{testing::planted_noise(kSizes, 0.5, 11)}});
  const std::vector<Batch> together = corpus(9, 6, 9);
  std::vector<Batch> apart;
  for (int64_t b = 0; b < 9; ++b) {
    Batch one = select_examples(together[0], at::tensor({b}));
    const int64_t length = one.at("attention_mask").sum().item<int64_t>();
    for (auto& [name, tensor] : one) tensor = tensor.slice(1, 0, length);
    apart.push_back(one);
  }
  const RoleTable first = roles(model, BatchList(together), options_of());
  const RoleTable second = roles(model, BatchList(apart), options_of());
  ASSERT_EQ(first.heads[0][0].size(), second.heads[0][0].size());
  for (const RoleScore& score : first.heads[0][0]) {
    const RoleScore* other = second.find(0, 0, score.role, score.variant);
    EXPECT_EQ(score.rows, other->rows) << score.role;
    if (!score.assessed) continue;
    EXPECT_NEAR(score.score, other->score, 1e-6) << score.role;
    ASSERT_EQ(score.nulls.size(), other->nulls.size()) << score.role;
    for (size_t i = 0; i < score.nulls.size(); ++i) {
      EXPECT_NEAR(score.nulls[i].value, other->nulls[i].value, 1e-5)
          << score.role << " " << score.nulls[i].name;
    }
  }
}

TEST(TextRolesTest, MergedAccumulatorsSawAllSamples) {
  PlantedAttention model(kSizes, {{testing::planted_noise(kSizes, 0.5, 12)}});
  const BatchList data(corpus(10, 7));
  const RoleMeasure measure{.draws = 20, .bootstrap = 50};
  const auto make = [&] {
    RoleAccumulators all;
    all.push_back(offset_roles(model.layout()));
    all.push_back(row_shape_roles(model.layout()));
    all.push_back(local_role(model.layout()));
    all.push_back(duplicate_token_role(model.layout(), measure));
    return all;
  };
  // Hands odd samples to one set and even ones to the other.
  struct Split final : RoleAccumulator {
    RoleAccumulators *even, *odd;
    void add(const RoleRows& rows) override {
      for (const auto& each : rows.attention.sample % 2 == 0 ? *even : *odd) each->add(rows);
    }
    void merge(const RoleAccumulator&) override {}
    void finish(const RoleEnd&, RoleTable&) const override {}
  };
  RoleAccumulators whole = make(), even = make(), odd = make();
  auto split = std::make_unique<Split>();
  split->even = &even;
  split->odd = &odd;
  RoleAccumulators splitters;
  splitters.push_back(std::move(split));
  const RolePass pass{.special_tokens = {kBegin, kEnd}};
  accumulate_roles(model, data, pass, whole);
  accumulate_roles(model, data, pass, splitters);
  for (size_t i = 0; i < odd.size(); ++i) odd[i]->merge(*even[i]);
  const RoleTable expected = finish_roles(model, 10, measure, whole);
  const RoleTable merged = finish_roles(model, 10, measure, odd);
  for (const RoleScore& score : expected.heads[0][0]) {
    const RoleScore* other = merged.find(0, 0, score.role, score.variant);
    if (score.assessed) {
      EXPECT_EQ(score.score, other->score) << score.role;
    }
    EXPECT_EQ(score.lower, other->lower) << score.role;
    EXPECT_EQ(score.upper, other->upper) << score.role;
    for (size_t i = 0; i < score.nulls.size(); ++i) {
      EXPECT_NEAR(score.nulls[i].value, other->nulls[i].value, 1e-12);
    }
  }
}

TEST(TextRolesTest, OneTokenAndPaddingAloneAreNoRows) {
  PlantedAttention model(kSizes, {{testing::planted_noise(kSizes, 0.5, 13)}});
  Batch batch{{"input_ids", at::full({3, 1}, 5, at::kLong)},
              {"attention_mask", at::tensor({1, 0, 1}, at::kLong).reshape({3, 1})}};
  const RoleTable table = roles(model, BatchList({batch}), options_of());
  EXPECT_EQ(table.sequences, 3);
  EXPECT_FALSE(table.find(0, 0, "broad")->assessed);
  EXPECT_FALSE(table.find(0, 0, "previous_token")->assessed);
  EXPECT_EQ(table.find(0, 0, "self")->rows, 2);
  EXPECT_NEAR(table.find(0, 0, "self")->score, 1, 1e-7);
  EXPECT_THROW(roles(model, BatchList(std::vector<Batch>{}), options_of()), std::invalid_argument);
}

TEST(TextRolesTest, NothingGivenIsModified) {
  PlantedAttention model(kSizes, {{testing::planted_noise(kSizes, 0.5, 14)}});
  const std::vector<Batch> data = corpus(5, 8);
  std::vector<Batch> batches_before;
  for (const Batch& batch : data) {
    Batch& copy = batches_before.emplace_back();
    for (const auto& [name, tensor] : batch) copy[name] = tensor.clone();
  }
  std::vector<at::Tensor> weights_before;
  for (const auto& [name, tensor] : model.parameters()) weights_before.push_back(tensor.clone());
  const RoleTable table = roles(model, BatchList(data), options_of());
  input_roles(model, BatchList(data), table, options_of());
  for (size_t i = 0; i < data.size(); ++i) {
    for (const auto& [name, tensor] : data[i]) {
      EXPECT_TRUE(at::equal(tensor, batches_before[i].at(name))) << name;
    }
  }
  const auto after = model.parameters();
  for (size_t i = 0; i < after.size(); ++i) {
    EXPECT_TRUE(at::equal(after[i].second, weights_before[i])) << after[i].first;
  }
}

TEST(TextRolesTest, OneInputAgreesWithTheDataSetOrDeparts) {
  const double scale = planted_scale(kSizes.positions);
  PlantedAttention model(kSizes, {{testing::planted_offset(kSizes, -1, scale),
                                   PlantedHead(kSizes).preferring(kComma, scale)}});
  RoleOptions options = options_of();
  options.random_sequences = 0;
  const RoleTable dataset = roles(model, BatchList(corpus(100, 9)), options);
  ASSERT_TRUE(dataset.find(0, 0, "previous_token")->assigned);
  Batch commas{{"input_ids", at::tensor({0, 5, 2, 7, 2, 9, 1}, at::kLong).reshape({1, 7})}};
  const std::vector<RoleTable> found = input_roles(model, BatchList({commas}), dataset, options);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].of, "input");
  const RoleScore* previous = found[0].find(0, 0, "previous_token");
  EXPECT_EQ(previous->agrees, true);
  EXPECT_FALSE(previous->assigned);
  EXPECT_FALSE(previous->lower.has_value());
  EXPECT_EQ(found[0].find(0, 0, "natural_mass")->agrees, std::nullopt);
  EXPECT_THROW(input_roles(model, BatchList({commas}), found[0], options), std::invalid_argument);
}

TEST(TextRolesTest, WithoutTokensTheirRolesAreNotAssessed) {
  const HeadLayout layout{.layers = 1, .heads = 2, .head_dim = 2, .model_dim = 4};
  const auto model = testing::random_toy_model(layout, 2, 15);
  const Batch batch = testing::random_toy_batch(layout, 3, 6, 2, 16);
  const RoleTable table = roles(*model, BatchList({batch}), {});
  EXPECT_TRUE(table.find(0, 0, "broad")->assessed);
  for (const char* role : {"duplicate_token", "random_stripe", "rare_token", "copying"}) {
    EXPECT_FALSE(table.find(0, 0, role)->assessed) << role;
    EXPECT_FALSE(table.find(0, 0, role)->reason.empty()) << role;
  }
}

TEST(TextRolesTest, AnInactiveHeadWritesLittle) {
  PlantedHead loud(kSizes), silent(kSizes);
  loud.writing(kSizes.token(), kSizes.room(), kSizes.vocabulary);
  silent.writing(kSizes.token(), kSizes.room(), kSizes.vocabulary, 0.01);
  PlantedAttention model(kSizes, {{loud, silent, loud}});
  RoleOptions options = options_of();
  options.inactive_threshold = 0.1;
  const RoleTable table = roles(model, BatchList(corpus(100, 10)), options);
  // Norms 1, 0.01 and 1 by their mean.
  EXPECT_NEAR(table.find(0, 1, "inactive")->score, 0.01 / (2.01 / 3), 1e-6);
  EXPECT_TRUE(table.find(0, 1, "inactive")->assigned);
  EXPECT_FALSE(table.find(0, 0, "inactive")->assigned);
  EXPECT_EQ(table.find(0, 1, "inactive")->details.front().second, 0);
}

TEST(TextRolesTest, CopyingIsReadFromTheWeights) {
  PlantedHead copies(kSizes), reverses(kSizes);
  copies.writing(kSizes.token(), kSizes.token(), kSizes.vocabulary);
  reverses.writing(kSizes.token(), kSizes.token(), kSizes.vocabulary, -1);
  std::vector<PlantedHead> heads{copies, reverses};
  for (uint64_t seed = 0; seed < 6; ++seed) {
    PlantedHead other(kSizes);
    const at::Generator generator = at::detail::createCPUGenerator(seed);
    other.v = at::randn(other.v.sizes(), generator, at::kDouble);
    other.o = at::randn(other.o.sizes(), generator, at::kDouble);
    heads.push_back(other);
  }
  PlantedAttention model(kSizes, {heads});
  RoleOptions options = options_of();
  options.embedding = at::zeros({kSizes.vocabulary, kSizes.width()}, at::kDouble);
  options.embedding.slice(1, 0, kSizes.vocabulary).copy_(at::eye(kSizes.vocabulary, at::kDouble));
  options.unembedding = options.embedding;
  const RoleTable table = roles(model, BatchList(corpus(3, 11)), options);
  EXPECT_NEAR(table.find(0, 0, "copying")->score, 1, 1e-9);
  EXPECT_NEAR(table.find(0, 1, "copying")->score, -1, 1e-9);
  EXPECT_TRUE(table.find(0, 0, "copying")->assigned);
  EXPECT_FALSE(table.find(0, 1, "copying")->assigned);
  EXPECT_LT(std::abs(table.find(0, 3, "copying")->score), 0.9);
}

TEST(RoleSumsTest, IntervalsCoverTheTruth) {
  const HeadLayout layout{.layers = 1, .heads = 200, .head_dim = 1, .model_dim = 1};
  constexpr double kTruth = 0.3;
  std::mt19937_64 random(17);
  const auto uniform = [&] { return static_cast<double>(random() >> 11) * 0x1.0p-53; };
  // Two hundred heads are two hundred draws of 60 sequences whose rows go together.
  RoleSums sums("previous_token", "", layout);
  for (int64_t head = 0; head < 200; ++head) {
    for (int64_t sample = 0; sample < 60; ++sample) {
      const double own = kTruth + 0.4 * (uniform() - 0.5);
      RoleSums::Sums& entry = sums.of(sample, 0, head);
      for (int64_t row = 0; row < 20; ++row) entry.score += uniform() < own ? 1 : 0;
      entry.rows = 20;
    }
  }
  const std::vector<RoleScore> scores =
      sums.scores({layout, HeadMask::all(1, 200), {.bootstrap = 400}}, {});
  int64_t covered = 0;
  for (const RoleScore& score : scores) covered += *score.lower <= kTruth && kTruth <= *score.upper;
  EXPECT_GE(covered, 180);
  EXPECT_LE(covered, 198);
}

TEST(RoleSumsTest, PermutedKeysHaveTheMeanAndSpreadOfPermutations) {
  const HeadLayout layout{.layers = 1, .heads = 1, .head_dim = 1, .model_dim = 1};
  std::mt19937_64 random(19);
  std::vector<std::vector<double>> rows;
  RoleSums sums("previous_token", "", layout);
  for (int64_t i = 0; i < 40; ++i) {
    std::vector<double>& row = rows.emplace_back();
    double total = 0;
    for (int64_t j = 0; j < 6; ++j) total += row.emplace_back(static_cast<double>(random() % 100));
    double squares = 0;
    for (double& weight : row) {
      weight /= total;
      squares += weight * weight;
    }
    sums.of(i, 0, 0).rows = 1;
    sums.totals(0, 0).uniform += 1.0 / 6;
    sums.totals(0, 0).variance += squares / 6 - 1.0 / 36;
  }
  std::vector<double> permuted;
  for (int64_t draw = 0; draw < 4000; ++draw) {
    double sum = 0;
    for (const auto& row : rows) sum += row[random() % 6];
    permuted.push_back(sum / 40);
  }
  std::sort(permuted.begin(), permuted.end());
  const std::vector<RoleScore> scores = sums.scores(
      {layout, HeadMask::all(1, 1), {.draws = 4000, .bootstrap = 0}}, {.permuted_keys = true});
  ASSERT_EQ(scores[0].nulls.back().name, "best_of_n");
  EXPECT_NEAR(scores[0].nulls.back().value, permuted[3800], 0.004);
}

}  // namespace
}  // namespace headkit
