#include <headkit/explain/conllu.h>
#include <headkit/explain/offset_baseline.h>
#include <headkit/explain/word_alignment.h>
#include <pybind11/stl/filesystem.h>

#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Offsets = std::vector<std::pair<int64_t, int64_t>>;

Offsets as_offsets(const std::vector<TextSpan>& spans) {
  Offsets offsets;
  for (const TextSpan& span : spans) offsets.emplace_back(span.begin, span.end);
  return offsets;
}

std::vector<TextSpan> as_spans(const Offsets& offsets) {
  std::vector<TextSpan> spans;
  for (const auto& [begin, end] : offsets) spans.push_back({begin, end});
  return spans;
}

}  // namespace

void register_syntax(py::module_& m) {
  py::class_<DependencySentence>(m, "DependencySentence", R"pbdoc(
One sentence of a treebank: words, and for each the word that it depends on.

Attributes:
    text: as it is printed.
    words: syntactic words.
    spans: (begin, end) of each word in ``text``, in characters.
    head: for each word the place of the word that it depends on; -1 = the root.
    relation: for each word the name of the dependency.
)pbdoc")
      .def_readonly("text", &DependencySentence::text)
      .def_readonly("words", &DependencySentence::words)
      .def_property_readonly(
          "spans", [](const DependencySentence& sentence) { return as_offsets(sentence.spans); })
      .def_readonly("head", &DependencySentence::head)
      .def_readonly("relation", &DependencySentence::relation);
  py::class_<SequenceSyntax>(m, "SequenceSyntax", R"pbdoc(
Words of one sequence as its model reads them. Any parser may fill it.

Args:
    word_of_token: for each token of the model its word; -1 = none, as for special tokens.
    head_of_word: for each word the word that it depends on; -1 = no arc.
    relation: for each word the name of its arc.

Raises:
    ValueError: if sizes and places do not fit together.

Example:
    >>> syntax = headkit.SequenceSyntax([-1, 0, 1, 1, -1], [1, -1], ["det", "root"])
    >>> syntax.skipped_arcs
    0
)pbdoc")
      .def(py::init([](std::vector<int64_t> word_of_token, std::vector<int64_t> head_of_word,
                       std::vector<std::string> relation) {
             SequenceSyntax syntax{std::move(word_of_token), std::move(head_of_word),
                                   std::move(relation)};
             syntax.check();
             return syntax;
           }),
           py::arg("word_of_token"), py::arg("head_of_word"), py::arg("relation"))
      .def_readonly("word_of_token", &SequenceSyntax::word_of_token)
      .def_readonly("head_of_word", &SequenceSyntax::head_of_word)
      .def_readonly("relation", &SequenceSyntax::relation)
      .def_readonly("skipped_arcs", &SequenceSyntax::skipped_arcs);
  m.def("parse_conllu", &parse_conllu, py::arg("content"), py::arg("source") = "text", R"pbdoc(
Read sentences in CoNLL-U from a text.

Args:
    content: lines of ten columns; a blank line after each sentence.
    source: what messages call it.

Returns:
    list of DependencySentence.

Raises:
    ValueError: with the line, for what is not CoNLL-U.

Example:
    >>> line = "{}\t{}\t_\t_\t_\t_\t{}\t{}\t_\t_\n"
    >>> content = line.format(1, "No", 2, "det") + line.format(2, "way", 0, "root")
    >>> headkit.parse_conllu(content)[0].head
    [1, -1]
)pbdoc");
  m.def(
      "read_conllu", [](const std::filesystem::path& path) { return read_conllu(path.string()); },
      py::arg("path"),
      "The sentences of a CoNLL-U file; RuntimeError if it cannot be read, ValueError as "
      "``parse_conllu``.");
  m.def(
      "align_words",
      [](const DependencySentence& sentence, const Offsets& offsets) {
        return align_words(sentence, as_spans(offsets));
      },
      py::arg("sentence"), py::arg("offsets"), R"pbdoc(
Find the tokens of each word by characters.

Args:
    sentence: a DependencySentence.
    offsets: (begin, end) of each token in ``sentence.text``, as ``offset_mapping`` of a fast
        tokenizer; special tokens are empty.

Returns:
    SequenceSyntax: arcs of words that share a token, or have none, are left out and counted.

Raises:
    ValueError: for offsets outside the text.
)pbdoc");
  py::class_<OffsetBaseline>(m, "OffsetBaseline", R"pbdoc(
How well one fixed distance finds the word that another depends on.

Attributes:
    relation: name of the dependency.
    offset: in words, head minus dependent.
    arcs: number of arcs that ``accuracy`` is over.
    accuracy: share of arcs at this offset, 0 to 1.
)pbdoc")
      .def_readonly("relation", &OffsetBaseline::relation)
      .def_readonly("offset", &OffsetBaseline::offset)
      .def_readonly("arcs", &OffsetBaseline::arcs)
      .def_readonly("accuracy", &OffsetBaseline::accuracy);
  m.def("offset_baselines", &offset_baselines, py::arg("chosen_on"), py::arg("scored_on"), R"pbdoc(
Find the fixed word offset within 8 words that predicts most dependencies of every relation.

A syntactic role counts only by how far a head beats this rule.

Args:
    chosen_on: SequenceSyntax of the sequences that offsets are chosen on.
    scored_on: those that accuracies are measured on.

Returns:
    list of OffsetBaseline: the most frequent relation first. ``nsubj:pass`` counts under that name
    and as ``nsubj``.

Raises:
    ValueError: for sequences that are not sound.

Example:
    >>> syntax = headkit.SequenceSyntax([], [1, -1], ["det", "root"])
    >>> headkit.offset_baselines([syntax], [syntax])[0].offset
    1
)pbdoc");
}

}  // namespace headkit::bindings
