#include "headkit/explain/syntactic_roles.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "explain/word_attention.h"
#include "given_rows.h"
#include "headkit/explain/offset_baseline.h"

namespace headkit {
namespace {

using testing::detail_of;
using testing::GivenRows;
using testing::layout_of;
using testing::null_of;
using testing::pointing_at;
using testing::table_of;

constexpr int64_t kSentences = 160;
constexpr double kWeight = 0.9;
const RoleMeasure kMeasure{.draws = 40, .bootstrap = 200};

// A grammar: words of one or two tokens between special ones; each but the last depends on some
// other word, by relation a or, as b:x, by b; no word has two dependents of relation b.
struct Sentence {
  SequenceSyntax syntax;
  std::vector<int64_t> first_token;  // by word
  int64_t tokens = 0;
};

Sentence make_sentence(uint64_t seed) {
  std::mt19937_64 random(seed);
  Sentence sentence;
  const auto words = static_cast<int64_t>(6 + random() % 3);
  sentence.syntax.word_of_token = {-1};
  for (int64_t word = 0; word < words; ++word) {
    sentence.first_token.push_back(static_cast<int64_t>(sentence.syntax.word_of_token.size()));
    for (uint64_t piece = 0; piece <= random() % 2; ++piece) {
      sentence.syntax.word_of_token.push_back(word);
    }
  }
  sentence.syntax.word_of_token.push_back(-1);
  sentence.tokens = static_cast<int64_t>(sentence.syntax.word_of_token.size());
  std::vector<bool> has_b(words, false);
  for (int64_t word = 0; word < words; ++word) {
    int64_t head = static_cast<int64_t>(random() % words);
    if (head == word) head = (head + 1) % words;
    const bool b = random() % 2 == 0 && !has_b[head];
    if (b) has_b[head] = true;
    sentence.syntax.head_of_word.push_back(word + 1 == words ? -1 : head);
    sentence.syntax.relation.push_back(b ? "b:x" : "a");
  }
  return sentence;
}

std::vector<Sentence> corpus() {
  std::vector<Sentence> sentences;
  for (int64_t i = 0; i < kSentences; ++i) sentences.push_back(make_sentence(100 + i));
  return sentences;
}

std::vector<SequenceSyntax> syntax_of(const std::vector<Sentence>& sentences) {
  std::vector<SequenceSyntax> all;
  for (const Sentence& each : sentences) all.push_back(each.syntax);
  return all;
}

// Head 0 looks from dependents of a at their words, head 1 from words at their dependents of b,
// head 2 at the next token, head 3 at all alike.
at::Tensor planted(const Sentence& sentence) {
  const SequenceSyntax& syntax = sentence.syntax;
  std::vector<int64_t> a(sentence.tokens, -1), b(sentence.tokens, -1), next(sentence.tokens);
  for (int64_t t = 0; t < sentence.tokens; ++t) {
    next[t] = (t + 1) % sentence.tokens;
    const int64_t word = syntax.word_of_token[t];
    if (word < 0) continue;
    if (syntax.head_of_word[word] >= 0 && syntax.relation[word] == "a") {
      a[t] = sentence.first_token[syntax.head_of_word[word]];
    }
    for (size_t u = 0; u < syntax.head_of_word.size(); ++u) {
      if (syntax.head_of_word[u] == word && syntax.relation[u] == "b:x") {
        b[t] = sentence.first_token[u];
      }
    }
  }
  std::vector<at::Tensor> heads;
  for (const auto& keys : {a, b, next, std::vector<int64_t>(sentence.tokens, -1)}) {
    heads.push_back(pointing_at(keys, sentence.tokens, kWeight));
  }
  return at::stack(heads);
}

RoleTable roles_of(const std::vector<Sentence>& sentences,
                   const std::function<at::Tensor(const Sentence&)>& attention) {
  const auto roles = syntactic_roles(layout_of(4), syntax_of(sentences), kMeasure, 100);
  for (int64_t i = 0; i < kSentences; ++i) {
    roles->add(GivenRows(i, 0, attention(sentences[i])).rows());
  }
  return table_of(*roles, 4, kMeasure);
}

TEST(SyntacticRolesTest, EveryPlantedHeadIsFoundAndNoOther) {
  const std::vector<Sentence> sentences = corpus();
  const RoleTable table = roles_of(sentences, planted);
  for (int64_t head = 0; head < 4; ++head) {
    std::vector<std::string> labels;
    for (const RoleScore& label : table.labels(0, head)) labels.push_back(label.variant);
    std::sort(labels.begin(), labels.end());
    const std::vector<std::string> expected =
        head == 0   ? std::vector<std::string>{"a/row"}
        : head == 1 ? std::vector<std::string>{"b/column", "b:x/column"}
                    : std::vector<std::string>{};
    EXPECT_EQ(labels, expected) << head;
  }
  const RoleScore& a = *table.find(0, 0, "syntactic", "a/row");
  EXPECT_DOUBLE_EQ(a.score, 1);
  EXPECT_DOUBLE_EQ(*a.lower, 1);
  EXPECT_DOUBLE_EQ(table.find(0, 1, "syntactic", "b/column")->score, 1);
  EXPECT_EQ(*table.find(0, 1, "syntactic", "b/column")->lower,
            *table.find(0, 1, "syntactic", "b:x/column")->lower);
}

TEST(SyntacticRolesTest, TheBaselineIsChosenOnEvenAndScoredOnOddSentences) {
  const std::vector<Sentence> sentences = corpus();
  std::vector<SequenceSyntax> parts[2];
  int64_t arcs = 0;
  for (int64_t i = 0; i < kSentences; ++i) parts[i % 2].push_back(sentences[i].syntax);
  const RoleTable table = roles_of(sentences, planted);
  for (const OffsetBaseline& baseline : offset_baselines(parts[0], parts[1])) {
    const RoleScore* score = table.find(0, 0, "syntactic", baseline.relation + "/row");
    ASSERT_NE(score, nullptr);
    EXPECT_DOUBLE_EQ(null_of(*score, "best_offset"), baseline.accuracy);
    EXPECT_EQ(detail_of(*score, "best_offset"), baseline.offset);
    EXPECT_DOUBLE_EQ(*score->threshold, baseline.accuracy + 0.10);
    EXPECT_EQ(score->rows, baseline.arcs);
    arcs += baseline.arcs;
  }
  EXPECT_GT(arcs, 400);
}

TEST(SyntacticRolesTest, EvenAttentionScoresItsNull) {
  const RoleTable table = roles_of(corpus(), planted);
  for (const char* variant : {"a/row", "a/column", "b/row"}) {
    const RoleScore& even = *table.find(0, 3, "syntactic", variant);
    EXPECT_DOUBLE_EQ(even.score, null_of(even, "uniform")) << variant;
  }
}

TEST(SyntacticRolesTest, ShuffledArcsAreMissed) {
  const RoleTable table = roles_of(corpus(), planted);
  const RoleScore& found = *table.find(0, 0, "syntactic", "a/row");
  EXPECT_GT(null_of(found, "shuffle"), 0.05);
  EXPECT_LT(null_of(found, "shuffle"), 0.4);
  EXPECT_GE(null_of(found, "best_of_n"), null_of(found, "shuffle"));
}

TEST(SyntacticRolesTest, MassOnSpecialTokensChangesNothing) {
  const std::vector<Sentence> sentences = corpus();
  const RoleTable plain = roles_of(sentences, planted);
  for (const double sink : {0.1, 0.5, 0.9}) {
    const RoleTable sunk = roles_of(sentences, [&](const Sentence& sentence) {
      at::Tensor rows = planted(sentence) * (1 - sink);
      rows.select(2, 0).add_(sink);
      return rows;
    });
    for (const char* variant : {"a/row", "b/column"}) {
      for (int64_t head = 0; head < 2; ++head) {
        const RoleScore& before = *plain.find(0, head, "syntactic", variant);
        const RoleScore& after = *sunk.find(0, head, "syntactic", variant);
        EXPECT_NEAR(after.score, before.score, 0.02) << sink;
        EXPECT_GT(after.excluded_mass, before.excluded_mass);
      }
      EXPECT_DOUBLE_EQ(sunk.find(0, 0, "syntactic", "a/row")->score, 1);
    }
  }
}

TEST(SyntacticRolesTest, RowsWithNothingLeftAreDroppedNotMissed) {
  const RoleTable table = roles_of(corpus(), [](const Sentence& sentence) {
    at::Tensor rows = planted(sentence);
    rows[0] *= 1e-4;
    rows[0].select(1, 0).add_(1 - 1e-4);
    return rows;
  });
  const RoleScore& dropped = *table.find(0, 0, "syntactic", "a/row");
  EXPECT_FALSE(dropped.assessed);
  EXPECT_FALSE(dropped.assigned);
  EXPECT_EQ(dropped.rows, 0);
  EXPECT_GT(dropped.dropped_rows, 100);
  EXPECT_TRUE(table.find(0, 1, "syntactic", "b/column")->assigned);
}

TEST(SyntacticRolesTest, AHeadThatWasNotChosenGetsNoLabel) {
  const std::vector<Sentence> sentences = corpus();
  const auto roles = syntactic_roles(layout_of(4), syntax_of(sentences), kMeasure, 100);
  for (int64_t i = 0; i < kSentences; ++i) {
    at::Tensor rows = planted(sentences[i]);
    if (i % 2 == 0) rows[0].copy_(rows[3]);
    roles->add(GivenRows(i, 0, rows).rows());
  }
  const RoleTable table = table_of(*roles, 4, kMeasure);
  const RoleScore& score = *table.find(0, 0, "syntactic", "a/row");
  EXPECT_DOUBLE_EQ(score.score, 1);
  EXPECT_FALSE(score.assigned);
  EXPECT_NE(score.reason.find("chosen"), std::string::npos);
}

TEST(SyntacticRolesTest, MergingIsExact) {
  const std::vector<Sentence> sentences = corpus();
  testing::expect_merging_is_exact(
      [&] { return syntactic_roles(layout_of(4), syntax_of(sentences), kMeasure, 1); },
      [&](RoleAccumulator& roles, int64_t i) {
        roles.add(GivenRows(i, 0, planted(sentences[i])).rows());
      },
      kSentences, 4);
}

TEST(SyntacticRolesTest, RefusesWhatDoesNotFit) {
  const std::vector<Sentence> sentences = corpus();
  EXPECT_THROW(syntactic_roles(layout_of(4), {}), std::invalid_argument);
  EXPECT_THROW(syntactic_roles(layout_of(4), {SequenceSyntax{{5}, {-1}, {"root"}}}),
               std::invalid_argument);
  const auto roles = syntactic_roles(layout_of(4), {sentences[0].syntax}, kMeasure);
  EXPECT_THROW(roles->add(GivenRows(1, 0, planted(sentences[0])).rows()), std::invalid_argument);
  const int64_t longer = sentences[0].tokens + 1;
  EXPECT_THROW(roles->add(GivenRows(0, 0, at::ones({4, longer, longer})).rows()),
               std::invalid_argument);
}

TEST(WordAttentionTest, SumsOverTheTargetAndAveragesOverTheSource) {
  // Tokens: special, word 0, word 0, word 1, word 2.
  const std::vector<int64_t> word_of_token{-1, 0, 0, 1, 2};
  const at::Tensor p = at::softmax(at::randn({2, 5, 5}, at::kDouble), -1).to(at::kFloat);
  const WordAttention found = word_attention(p.contiguous(), word_of_token, 3);
  const at::Tensor mean =
      at::tensor({0, 1, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 2}, at::kDouble).view({3, 5}) / 2;
  const at::Tensor sum = mean.ne(0).to(at::kDouble).t();
  at::Tensor expected = at::matmul(at::matmul(mean, p.to(at::kDouble)), sum);
  expected = expected * (1 - at::eye(3, at::kDouble));
  const at::Tensor left = expected.sum(-1, true);
  expected = expected / left;
  const at::Tensor weight = at::tensor(found.weight, at::kDouble).view({2, 3, 3});
  EXPECT_LT((weight - expected).abs().max().item<double>(), 1e-12);
  EXPECT_LT((at::tensor(found.left, at::kDouble).view({2, 3, 1}) - left).abs().max().item<double>(),
            1e-12);
  std::vector<double> share(3);
  share_of_largest(word_attention(at::full({1, 5, 5}, 0.2F), word_of_token, 3), 0, 0, false,
                   share.data());
  EXPECT_EQ(share, (std::vector<double>{0, 0.5, 0.5}));
}

}  // namespace
}  // namespace headkit
