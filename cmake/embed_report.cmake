# Writes the page of reports as a C++ source: cmake -DDIR=... -DSCRIPTS=... -DOUT=... -P embed_report.cmake
# Style and script go into the page with the hashes that its content security policy names.
cmake_minimum_required(VERSION 3.24)

# SHA-256 of a text in base64, as `sha256-...` of a content security policy.
function(policy_hash text result)
  string(SHA256 hex "${text}")
  string(APPEND hex "00")
  set(digits ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/)
  set(coded "")
  foreach(start RANGE 0 60 6)
    string(SUBSTRING ${hex} ${start} 6 group)
    math(EXPR group "0x${group}")
    foreach(shift 18 12 6 0)
      math(EXPR digit "(${group} >> ${shift}) & 63")
      string(SUBSTRING ${digits} ${digit} 1 digit)
      string(APPEND coded ${digit})
    endforeach()
  endforeach()
  string(SUBSTRING ${coded} 0 43 coded)
  set(${result} "sha256-${coded}=" PARENT_SCOPE)
endfunction()

# Lines without indentation, and without those that are comments only.
function(bare text result)
  string(REGEX REPLACE "\n[ ]*(//|/\\*)[^\n]*" "" text "\n${text}")
  string(REGEX REPLACE "\n[ ]+" "\n" text "${text}")
  set(${result} "${text}" PARENT_SCOPE)
endfunction()

file(READ "${DIR}/page.html" page)
file(READ "${DIR}/page.css" style)
set(script "\"use strict\";\n(() => {\n")
foreach(name ${SCRIPTS})
  file(READ "${DIR}/script/${name}.js" part)
  string(APPEND script "${part}")
endforeach()
string(APPEND script "})();\n")
bare("${style}" style)
bare("${script}" script)
string(REGEX REPLACE "([{;,(])\n" "\\1" script "${script}")
string(REPLACE " => " "=>" script "${script}")
string(TOLOWER "${script}" lower)
if(lower MATCHES "</script|<!--")
  message(FATAL_ERROR "[report] expected a script that can stand in a page; found </script or <!--")
endif()
policy_hash("${style}" style_hash)
policy_hash("${script}" script_hash)

string(FIND "${page}" "@data@" data)
string(SUBSTRING "${page}" 0 ${data} before)
math(EXPR data "${data} + 6")
string(SUBSTRING "${page}" ${data} -1 after)
string(REPLACE "@style_hash@" "${style_hash}" before "${before}")
string(REPLACE "@script_hash@" "${script_hash}" before "${before}")
string(REPLACE "@style@" "${style}" before "${before}")
string(REPLACE "@script@" "${script}" after "${after}")
file(WRITE "${OUT}" "#include \"explain/report_page.h\"

namespace headkit {

const char* const kReportPageBefore = R\"page(${before})page\";
const char* const kReportPageAfter = R\"page(${after})page\";

}  // namespace headkit
")
