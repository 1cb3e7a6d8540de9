#include "headkit/explain/word_alignment.h"

#include <gtest/gtest.h>

namespace headkit {
namespace {

using Places = std::vector<int64_t>;

// "He can't swim": the words ca and n't share a printed token.
DependencySentence sentence() {
  return {.text = "He can't swim",
          .words = {"He", "ca", "n't", "swim"},
          .spans = {{0, 2}, {3, 5}, {5, 8}, {9, 13}},
          .head = {3, 3, 3, -1},
          .relation = {"nsubj", "aux", "advmod", "root"}};
}

TEST(WordAlignmentTest, TokensFindTheirWordsByCharacters) {
  const SequenceSyntax found = align_words(
      sentence(), {{0, 0}, {0, 2}, {2, 5}, {5, 6}, {6, 8}, {8, 9}, {9, 11}, {11, 13}, {0, 0}});
  EXPECT_EQ(found.word_of_token, (Places{-1, 0, 1, 2, 2, -1, 3, 3, -1}));
  EXPECT_EQ(found.head_of_word, (Places{3, 3, 3, -1}));
  EXPECT_EQ(found.relation, sentence().relation);
  EXPECT_EQ(found.skipped_arcs, 0);
}

TEST(WordAlignmentTest, ArcsOfWordsThatShareATokenAreSkipped) {
  const SequenceSyntax found = align_words(sentence(), {{0, 2}, {3, 6}, {6, 7}, {7, 8}, {9, 13}});
  EXPECT_EQ(found.word_of_token, (Places{0, 1, 2, 2, 3}));
  EXPECT_EQ(found.head_of_word, (Places{3, -1, -1, -1}));
  EXPECT_EQ(found.skipped_arcs, 2);
}

TEST(WordAlignmentTest, ArcsOfATruncatedSentenceAreSkipped) {
  const SequenceSyntax found = align_words(sentence(), {{0, 2}, {3, 5}, {5, 8}});
  EXPECT_EQ(found.head_of_word, (Places{-1, -1, -1, -1}));
  EXPECT_EQ(found.skipped_arcs, 3);
  EXPECT_EQ(align_words(sentence(), {}).skipped_arcs, 3);
}

TEST(WordAlignmentTest, WordsThatDoNotSpellTheirTokenAreSkipped) {
  const DependencySentence french{.text = "au lit",
                                  .words = {"\xc3\xa0", "le", "lit"},
                                  .spans = {{0, 2}, {0, 2}, {3, 6}},
                                  .head = {2, 2, -1},
                                  .relation = {"case", "det", "root"}};
  const SequenceSyntax found = align_words(french, {{0, 2}, {3, 6}});
  EXPECT_EQ(found.word_of_token, (Places{0, 2}));
  EXPECT_EQ(found.skipped_arcs, 2);
}

TEST(WordAlignmentTest, RefusesSpansOutsideTheText) {
  for (const TextSpan& span : {TextSpan{-1, 2}, TextSpan{2, 1}, TextSpan{0, 14}}) {
    EXPECT_THROW(align_words(sentence(), {span}), std::invalid_argument);
  }
}

TEST(SequenceSyntaxTest, RefusesIndicesThatDoNotFit) {
  const auto broken = [](Places tokens, Places heads, std::vector<std::string> relations) {
    const SequenceSyntax syntax{std::move(tokens), std::move(heads), std::move(relations)};
    EXPECT_THROW(syntax.check(), std::invalid_argument);
  };
  broken({0, 2}, {1, -1}, {"a", "b"});
  broken({0, -2}, {1, -1}, {"a", "b"});
  broken({0, 1}, {2, -1}, {"a", "b"});
  broken({0, 1}, {0, -1}, {"a", "b"});
  broken({0, 1}, {1, -1}, {"a"});
}

}  // namespace
}  // namespace headkit
