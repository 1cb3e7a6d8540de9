#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "headkit/explain/conllu.h"

namespace headkit {

/// Words of one sequence as its model reads them. Plain arrays: any parser may fill them.
struct SequenceSyntax {
  std::vector<int64_t> word_of_token;  ///< for each token of the model its word, or -1
  std::vector<int64_t> head_of_word;   ///< for each word the word that it depends on; -1 = no arc
  std::vector<std::string> relation;   ///< for each word; of no meaning where there is no arc
  int64_t skipped_arcs = 0;            ///< arcs that were left out: their words have no own tokens

  /// Throws std::invalid_argument unless sizes and indices fit together.
  void check() const;
};

/// Finds the tokens of each word by characters. `token_spans` are those of a fast tokenizer over
/// `sentence.text`, special tokens empty. A token that lies in several words counts under the
/// first; arcs of these words are skipped, as are those of words without a token.
/// Throws std::invalid_argument for spans outside the text.
SequenceSyntax align_words(const DependencySentence& sentence,
                           const std::vector<TextSpan>& token_spans);

}  // namespace headkit
