#cmake - DNM = ... - DOBJDUMP = ... - DLEVEL = ... - DOBJECT = ... - P check_objects.cmake
#Fails if the object of a level could lend code to another, or uses another level's registers.
execute_process(COMMAND ${NM} - C ${OBJECT} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
    string(REGEX MATCHALL "[^\n]* [WVu] [^\n]*" weak "${symbols}") if (weak) message(
        FATAL_ERROR "[kernels] expected no weak symbols in ${OBJECT}; found\n${weak}") endif()
        string(REGEX MATCHALL "[^\n]* [TDBRG] [^\n]*" exported "${symbols}") list(
            LENGTH exported count) if (NOT count EQUAL 1 OR NOT exported MATCHES
                                       "headkit::kernels::${LEVEL}::table")
            message(FATAL_ERROR
                    "[kernels] expected only ${LEVEL}::table to be exported; found\n${exported}")
                endif() if (NOT OBJDUMP) return () endif() execute_process(
                    COMMAND ${OBJDUMP} -
                    d ${OBJECT} OUTPUT_VARIABLE code COMMAND_ERROR_IS_FATAL ANY)
                    foreach (register IN ITEMS ymm zmm) string(FIND
                                                               "${code}"
                                                               "%${register}" at) if (at EQUAL -
                                                                                      1) set(has_${
                        register} FALSE) else() set(has_${
                        register} TRUE) endif() endforeach() set(wanted_ymm_scalar FALSE)
                        set(wanted_ymm_avx2 TRUE) set(wanted_ymm_avx512 ${
                            has_ymm}) set(wanted_zmm_scalar FALSE) set(wanted_zmm_avx2 FALSE)
                            set(wanted_zmm_avx512 TRUE) foreach (register IN ITEMS ymm zmm) if (
                                NOT has_${register} STREQUAL wanted_${register} _${LEVEL})
                                message(FATAL_ERROR
                                        "[kernels] expected ${register} registers in ${LEVEL}: "
                                        "${wanted_${register}_${LEVEL}}; found ${has_${register}}")
                                    endif() endforeach()
