#include "headkit/explain/word_alignment.h"

#include <algorithm>
#include <optional>

#include "explain/code_points.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "align_words";

struct WordRange {
  int64_t first = 0, last = -1;  // both inside; empty if last < first
  int64_t count() const { return last - first + 1; }
};

// Words that share a character with a token. Spans of words do not decrease.
WordRange words_of(const std::vector<TextSpan>& words, const TextSpan& token) {
  WordRange range;
  const auto first = std::partition_point(
      words.begin(), words.end(), [&](const TextSpan& word) { return word.end <= token.begin; });
  range.first = first - words.begin();
  range.last = range.first - 1;
  for (auto word = first; word != words.end() && word->begin < token.end; ++word) ++range.last;
  return range;
}

}  // namespace

void SequenceSyntax::check() const {
  const auto words = static_cast<int64_t>(head_of_word.size());
  HEADKIT_CHECK(relation.size() == head_of_word.size(), "syntax", "a relation for each word",
                relation.size(), " relations of ", words, " words");
  for (const int64_t word : word_of_token) {
    HEADKIT_CHECK(word >= -1 && word < words, "syntax",
                  "word_of_token below " + std::to_string(words) + ", or -1", word);
  }
  for (int64_t word = 0; word < words; ++word) {
    const int64_t head = head_of_word[static_cast<size_t>(word)];
    HEADKIT_CHECK(head >= -1 && head < words && head != word, "syntax",
                  "head_of_word that is another word below " + std::to_string(words) + ", or -1",
                  head, " of word ", word);
  }
}

SequenceSyntax align_words(const DependencySentence& sentence,
                           const std::vector<TextSpan>& token_spans) {
  const size_t words = sentence.words.size();
  HEADKIT_CHECK(sentence.spans.size() == words && sentence.head.size() == words &&
                    sentence.relation.size() == words,
                kOperation, "a span, a head and a relation for each word", sentence.spans.size(),
                ", ", sentence.head.size(), " and ", sentence.relation.size(), " for ", words);
  const std::optional<int64_t> length = count_code_points(sentence.text);
  HEADKIT_CHECK(length.has_value(), kOperation, "text in UTF-8", "other bytes");

  SequenceSyntax syntax{.word_of_token = std::vector<int64_t>(token_spans.size(), -1),
                        .head_of_word = sentence.head,
                        .relation = sentence.relation};
  std::vector<bool> has_token(words, false), shared(words, false);
  for (size_t t = 0; t < token_spans.size(); ++t) {
    const TextSpan& token = token_spans[t];
    HEADKIT_CHECK(0 <= token.begin && token.begin <= token.end && token.end <= *length, kOperation,
                  "token spans inside the " + std::to_string(*length) + " characters of the text",
                  token.begin, "..", token.end);
    if (token.begin == token.end) continue;
    const WordRange range = words_of(sentence.spans, token);
    if (range.count() == 0) continue;
    syntax.word_of_token[t] = range.first;
    for (int64_t word = range.first; word <= range.last; ++word) {
      has_token[static_cast<size_t>(word)] = true;
      if (range.count() > 1) shared[static_cast<size_t>(word)] = true;
    }
  }
  const auto is_own = [&](int64_t word) {
    return has_token[static_cast<size_t>(word)] && !shared[static_cast<size_t>(word)];
  };
  for (size_t word = 0; word < words; ++word) {
    int64_t& head = syntax.head_of_word[word];
    if (head < 0 || (is_own(static_cast<int64_t>(word)) && is_own(head))) continue;
    head = -1;
    ++syntax.skipped_arcs;
  }
  syntax.check();
  return syntax;
}

}  // namespace headkit
