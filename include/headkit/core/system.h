#pragma once

#include <string>
#include <vector>

namespace headkit {

/// Instruction-set levels of the CPU kernels that this build holds and this machine can run, from
/// slowest to fastest: "scalar", "avx2", "avx512", "avx512_bf16".
std::vector<std::string> available_isas();

/// The level in use: the fastest available, or what the environment variable HEADKIT_ISA names.
/// Throws std::runtime_error if that names a level the build or the machine lacks.
std::string active_isa();

/// FLOP/s of multiply-adds on registers alone at the active level, over the threads that torch
/// uses: the ceiling of every CPU kernel. Runs for `seconds` on each thread.
///
/// Args: dtype "float32", or "bfloat16": products of bfloat16 summed in float32, on a level that
/// has them natively. Throws std::invalid_argument for other dtypes and levels.
double peak_flops(const std::string& dtype = "float32", double seconds = 0.02);

/// Backends of the attention operator on this machine: "cpu", "cuda", "aten", "reference".
std::vector<std::string> available_backends();

/// One line a fact, for a bug report: versions, instruction set, threads, backends.
std::string show_config();

}  // namespace headkit
