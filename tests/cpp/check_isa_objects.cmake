# cmake -DNM=nm -DOBJECTS="isa_avx2.cpp.o;isa_amx.cpp.o" -DCOUNT=2 -P check_isa_objects.cmake
#
# Fails when an object of an instruction-set level (isa_<level>.cpp, isa_<level>_<part>.cpp) defines a weak symbol that does not
# carry the level's namespace. Weak symbols are inline functions and template instances: the linker keeps one copy for the whole
# library, and if it is the one compiled for AVX-512, an older CPU meets an illegal instruction in code that looks like baseline.
# The cure: put the code into the level's namespace, or make it always inline.
set(checked 0)
set(leaks 0)
foreach(object ${OBJECTS})
  if(NOT object MATCHES "/isa_([a-z0-9]+)(_[a-z0-9_]+)?\\.cpp\\.o(bj)?$")
    continue()
  endif()
  set(level ${CMAKE_MATCH_1})
  string(LENGTH ${level} length)
  set(namespace "${length}${level}")  # as mangled names spell it
  math(EXPR checked "${checked} + 1")
  # Per line: name, type, address, size. W, V: weak code, weak data; u: unique. Undefined ones are w, v, U.
  execute_process(COMMAND ${NM} -P --defined-only ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]+" lines "${symbols}")
  foreach(line ${lines})
    if(line MATCHES "^[^ ]+ [WVu] " AND NOT line MATCHES "${namespace}[^ ]* [WVu] ")
      math(EXPR leaks "${leaks} + 1")
      message("isa_${level}: ${line}")
    endif()
  endforeach()
endforeach()
message("${checked} objects, ${leaks} symbols that leak")
if(NOT checked EQUAL COUNT)
  message(FATAL_ERROR "expected ${COUNT} objects")
endif()
if(leaks)
  message(FATAL_ERROR "code of an instruction-set level can end up in the baseline")
endif()
