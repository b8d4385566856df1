# attile_isa_levels(sources_variable): gives every src/cpp/cpu/isa_<level>.cpp the flags of its level, and takes the files out
# of the list whose level this architecture or this compiler has not. Sets ATTILE_ISA_SUMMARY, and ATTILE_ISA_COUNT: the levels
# that have flags of their own.

set(attile_isa_flags_avx2 -mavx -mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mmovbe -mpopcnt)
set(attile_isa_flags_avx512
  ${attile_isa_flags_avx2} -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl -mprefer-vector-width=512)
set(attile_isa_flags_amx ${attile_isa_flags_avx512} -mavx512bf16 -mamx-tile -mamx-bf16)

function(attile_isa_levels sources_variable)
  set(sources ${${sources_variable}})
  set(levels portable)
  string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" processor)
  check_cxx_compiler_flag(-Wno-psabi ATTILE_COMPILER_WNO_PSABI)

  foreach(level avx2 avx512 amx)
    string(TOUPPER ${level} LEVEL)
    set(file ${PROJECT_SOURCE_DIR}/src/cpp/cpu/isa_${level}.cpp)
    set(compiled_in 0)
    if(processor MATCHES "^(x86_64|amd64)$" AND file IN_LIST sources)
      string(JOIN " " flags ${attile_isa_flags_${level}})
      check_cxx_compiler_flag("${flags}" ATTILE_COMPILER_${LEVEL})
      if(ATTILE_COMPILER_${LEVEL})
        set(compiled_in 1)
        list(APPEND levels ${level})
        set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${attile_isa_flags_${level}}")
      endif()
    endif()
    # The file goes to the end of the list: of two copies of one inline function the linker keeps the first it meets. That is
    # the second line of defence; the first is tests/cpp/check_isa_objects.cmake.
    list(REMOVE_ITEM sources ${file})
    if(compiled_in)
      list(APPEND isa_sources ${file})
    endif()
    list(APPEND definitions ATTILE_ISA_${LEVEL}=${compiled_in})
  endforeach()

  list(APPEND sources ${isa_sources})
  foreach(source ${sources})
    if(source MATCHES "/src/cpp/cpu/.*\\.cpp$")
      set_property(SOURCE ${source} APPEND PROPERTY COMPILE_DEFINITIONS ${definitions})
      if(ATTILE_COMPILER_WNO_PSABI)
        # Vectors that the level cannot hold in a register pass through memory; gcc notes that its ABI for them once changed.
        set_property(SOURCE ${source} APPEND PROPERTY COMPILE_OPTIONS -Wno-psabi)
      endif()
    endif()
  endforeach()
  set(${sources_variable} ${sources} PARENT_SCOPE)
  list(LENGTH isa_sources count)
  set(ATTILE_ISA_COUNT ${count} PARENT_SCOPE)
  string(JOIN " " summary ${levels})
  set(ATTILE_ISA_SUMMARY "${summary} (${CMAKE_SYSTEM_PROCESSOR})" PARENT_SCOPE)
endfunction()
