# System packages first; a download pinned by hash only when HEADKIT_FETCH_DEPENDENCIES allows it.
include(FetchContent)

function(headkit_dependency package debian)
  cmake_parse_arguments(ARG "" "URL;SHA256" "" ${ARGN})
  find_package(${package} QUIET)
  if(${package}_FOUND)
    return()
  endif()
  if(NOT HEADKIT_FETCH_DEPENDENCIES)
    message(FATAL_ERROR "[headkit] expected the CMake package ${package}; found none. Install it "
                        "(apt-get install ${debian}) or configure with -DHEADKIT_FETCH_DEPENDENCIES=ON.")
  endif()
  FetchContent_Declare(${package} URL ${ARG_URL} URL_HASH SHA256=${ARG_SHA256} SYSTEM)
  FetchContent_MakeAvailable(${package})
endfunction()

set(JSON_Install OFF CACHE INTERNAL "")
headkit_dependency(nlohmann_json nlohmann-json3-dev
  URL https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
  SHA256 d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d)
if(HEADKIT_BUILD_TESTS)
  set(INSTALL_GTEST OFF CACHE INTERNAL "")
  headkit_dependency(GTest libgtest-dev
    URL https://github.com/google/googletest/archive/refs/tags/v1.14.0.tar.gz
    SHA256 8ad598c73ad796e0d8280b082cebd82a630d73e73cd3c70057938a6501bba5d7)
endif()
if(HEADKIT_BUILD_BENCHMARKS)
  set(BENCHMARK_ENABLE_TESTING OFF CACHE INTERNAL "")
  set(BENCHMARK_ENABLE_INSTALL OFF CACHE INTERNAL "")
  headkit_dependency(benchmark libbenchmark-dev
    URL https://github.com/google/benchmark/archive/refs/tags/v1.8.3.tar.gz
    SHA256 6bc180a57d23d4d9515519f92b0c83d61b05b5bab188961f36ac7b06b0d9e9ce)
endif()
