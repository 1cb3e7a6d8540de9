# LibTorch as PyPI ships it. find_package(Torch) stops on a CUDA build of torch when the machine has
# no CUDA toolkit, so the libraries are imported by path; no CUDA header is needed to use them.
if(HEADKIT_BUILD_PYTHON OR NOT HEADKIT_TORCH_ROOT)
  set(_python_components Interpreter)
  if(HEADKIT_BUILD_PYTHON)
    list(APPEND _python_components Development.Module)
  endif()
  set(Python_FIND_VIRTUALENV FIRST)
  find_package(Python 3.10 REQUIRED COMPONENTS ${_python_components})
endif()

if(NOT HEADKIT_TORCH_ROOT)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '', end='')"
    OUTPUT_VARIABLE HEADKIT_TORCH_ROOT COMMAND_ERROR_IS_FATAL ANY)
  if(NOT HEADKIT_TORCH_ROOT)
    message(FATAL_ERROR "[headkit] expected torch beside ${Python_EXECUTABLE}; found none. "
                        "Install it (pip install 'torch>=2.11') or set HEADKIT_TORCH_ROOT to a torch folder.")
  endif()
endif()

file(READ "${HEADKIT_TORCH_ROOT}/version.py" _torch_version_file)
string(REGEX MATCH "__version__ = '([0-9]+)\\.([0-9]+)\\.([0-9]+)[^']*'" _ "${_torch_version_file}")
set(HEADKIT_TORCH_VERSION "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}.${CMAKE_MATCH_3}")
set(HEADKIT_TORCH_MINOR "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}")
if(HEADKIT_TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "[headkit] expected torch 2.11 or newer; found ${HEADKIT_TORCH_VERSION} in ${HEADKIT_TORCH_ROOT}")
endif()
message(STATUS "headkit: torch ${HEADKIT_TORCH_VERSION} in ${HEADKIT_TORCH_ROOT}")

foreach(_library c10 torch_cpu torch torch_python)
  add_library(headkit_torch::${_library} SHARED IMPORTED)
  set_target_properties(headkit_torch::${_library} PROPERTIES
    IMPORTED_LOCATION "${HEADKIT_TORCH_ROOT}/lib/lib${_library}.so"
    INTERFACE_INCLUDE_DIRECTORIES "${HEADKIT_TORCH_ROOT}/include;${HEADKIT_TORCH_ROOT}/include/torch/csrc/api/include")
endforeach()

# at::parallel_for is header code: our translation units must enter the same OpenMP pool as torch, or
# two pools fight over the cores and torch.set_num_threads stops working.
file(GLOB _torch_openmp "${HEADKIT_TORCH_ROOT}/lib/libgomp*.so*" "${HEADKIT_TORCH_ROOT}/../torch.libs/libgomp*.so*")
if(_torch_openmp)
  list(GET _torch_openmp 0 _torch_openmp)
  add_library(headkit_torch::openmp SHARED IMPORTED)
  set_target_properties(headkit_torch::openmp PROPERTIES IMPORTED_LOCATION "${_torch_openmp}")
else()
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  add_library(headkit_torch::openmp INTERFACE IMPORTED)
  target_link_libraries(headkit_torch::openmp INTERFACE OpenMP::OpenMP_CXX)
endif()
