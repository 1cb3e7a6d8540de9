#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace headkit {

/// A part of a text: characters begin .. end-1, counted in Unicode code points.
struct TextSpan {
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const TextSpan&) const = default;
};

/// One sentence of a treebank: words, and for each the word that it depends on.
///
///     words     From  the  AP  comes        text  "From the AP comes"
///     head         2    2   3     -1        zero-based; -1 = the root, which is no arc
///     relation  case  det  obl   root
struct DependencySentence {
  std::string text;                ///< as it is printed, UTF-8
  std::vector<std::string> words;  ///< syntactic words
  /// Where each word is in `text`. The words of one printed token ("don't" = "do" "n't") share its
  /// characters if together they spell it; else each has the span of the whole token.
  std::vector<TextSpan> spans;
  std::vector<int64_t> head;          ///< word that each depends on, or -1
  std::vector<std::string> relation;  ///< for example nsubj:pass
};

/// Reads CoNLL-U (Universal Dependencies): columns ID, FORM, HEAD and DEPREL, of MISC only
/// SpaceAfter=No. Comments and empty nodes (8.1) are skipped. Safe on any bytes: throws
/// std::invalid_argument with `source` and the line for what is not CoNLL-U.
std::vector<DependencySentence> parse_conllu(std::string_view content, const std::string& source);

/// The sentences of a file. std::runtime_error if it cannot be read.
std::vector<DependencySentence> read_conllu(const std::string& path);

}  // namespace headkit
